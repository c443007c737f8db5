"""An asynchronous Shield, asked by the threads of a synchronous server.

    the store is in this process     in the calling thread, which holds the lock for microseconds
    it has to be awaited             in a loop, in a thread of its own; the calling thread waits

The loop runs in both cases: issuers' keys are fetched there, and blocks of other processes heard of. Its thread holds
the same lock except while it waits for something to happen, so whatever belongs to the shield is touched by one thread
at a time. Threads do not survive a fork: each process starts its loop with its first request.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final

from shield.decision import Decision
from shield.errors import ShieldError
from shield.middleware.turn import CALL_S, at_once
from shield.request import Request
from shield.shield import Shield

_BRIDGES: Final[weakref.WeakSet[Bridge]] = weakref.WeakSet()


class Bridge:
    """Calls one shield from any thread."""

    def __init__(self, shield: Shield) -> None:
        self.shield = shield
        self.on_fork: Callable[[], None] = lambda: None
        """Called in a process that was just forked."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _BRIDGES.add(self)

    def check(self, request: Request) -> Decision:
        """The decision. ShieldError when the loop hangs."""
        if self.shield.store.local:
            self._running()
            with self._lock:
                return self.shield.check_nowait(request)
        decision: Decision = self._in_loop(self.shield.check(request))
        return decision

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Anything else that the shield has, to its end."""
        if self.shield.store.local:
            with self._lock:
                return at_once(coroutine)
        return self._in_loop(coroutine)

    def close(self) -> None:
        """Closes the shield and ends the thread. What is asked later opens both again."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self.shield.close(), loop).result(CALL_S)
            _end(loop, thread)

    def _in_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        try:
            return future.result(CALL_S)
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise ShieldError(f"the shield's loop has not answered for {CALL_S:.0f} s") from None

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None:
            with self._starting:
                loop = self._loop
                if loop is None:
                    loop = asyncio.SelectorEventLoop(_Yielding(self._lock))
                    thread = threading.Thread(target=_run, args=(loop, self._lock), name="shield", daemon=True)
                    thread.start()
                    try:
                        asyncio.run_coroutine_threadsafe(self.shield.open(), loop).result(CALL_S)
                    except BaseException:
                        _end(loop, thread)  # the next call tries again
                        raise
                    self._loop, self._thread = loop, thread
        return loop

    def forget(self) -> None:
        """In a process that was just forked: the parent's thread and whatever its locks were doing are not here."""
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._loop = self._thread = None
        self.on_fork()


class _Yielding(selectors.DefaultSelector):
    """Waits without the lock that its thread holds otherwise."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self._lock = lock

    def select(self, timeout: float | None = None) -> Any:
        """Called by the loop."""
        self._lock.release()
        try:
            return super().select(timeout)
        finally:
            self._lock.acquire()


def _run(loop: asyncio.AbstractEventLoop, lock: threading.Lock) -> None:
    with lock:
        loop.run_forever()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(CALL_S)
    loop.close()


def _after_fork() -> None:
    for bridge in list(_BRIDGES):
        bridge.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
