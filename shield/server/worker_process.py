"""One worker as its supervisor sees it: a process, what was said last, and what it was asked."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from prometheus_client import ProcessCollector

from shield.server.bounds import WORKER_END_S
from shield.server.control import (
    Channel,
    ControlError,
    Counted,
    Done,
    Ended,
    Message,
    Prepared,
    Ready,
    Start,
    Told,
    ToSupervisor,
    Unable,
)
from shield.server.counts import Counts
from shield.server.worker import IGNORED, PROGRAM

_POLL_S: Final = 0.01
# Why a worker ended, for metrics: a closed list.
SIGNAL, EXIT, SILENT, UNABLE = CAUSES = ("signal", "exit", "silent", "unable")


class WorkerProcess:
    """A worker, from its start to its end. OSError when it cannot be started.

    `generation` counts what the supervisor was told since its own start: a worker that starts while that
    changes knows what was before.
    """

    def __init__(self, start: Start, generation: int) -> None:
        self.number = start.number
        self.generation = generation
        self.admitted = False
        """Whether it may be given listeners."""
        self.ready: Ready | None = None
        self.unable: Unable | None = None
        self.ended = False
        """It said so itself, after a drain."""
        self.counts = Counts()
        self.degraded = False
        self.quiet_ticks = 0
        """Seconds of ours since it said something."""
        self.started_s = self.ready_s = asyncio.get_running_loop().time()
        self.on_told: Callable[[WorkerProcess, Told], None] | None = None
        """Takes what its detectors have counted, for the other workers."""
        self.spoken = asyncio.Event()
        """It is ready, or will never be."""
        self._killed_for = ""
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._ids = count(1)
        ours, theirs = socket.socketpair()
        try:
            self._process = _spawn(theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, ToSupervisor)
        self.process_metrics = ProcessCollector("shield_worker", lambda: self.pid, registry=None)
        self.send(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    # ---- speaking ------------------------------------------------------------------------------------------

    def send(self, message: Message, beside: socket.socket | None = None) -> None:
        """Tells it something. A worker that does not read is killed."""
        try:
            self._channel.send(message, beside)
        except ControlError:
            self.kill(SILENT)

    async def ask(self, kind: Any, *fields: Any, within_s: float) -> Any:
        """Its answer to a message; None when it has gone or does not answer in time."""
        id = next(self._ids)
        answer = self._asked[id] = asyncio.get_running_loop().create_future()
        try:
            if self.gone:
                return None
            self.send(kind(id, *fields))
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[id]

    async def follow(self) -> None:
        """Hears it, until it has gone."""
        try:
            while (message := await self._channel.receive()) is not None:
                self.quiet_ticks = 0
                self._hear(message)
        except ControlError:
            self.kill(EXIT)
        finally:
            self.gone = True
            self.admitted = False
            self._channel.close()
            self.spoken.set()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_result(None)

    gone = False

    def _hear(self, message: Any) -> None:
        match message:
            case Counted():
                self.counts, self.degraded = message.counts, message.degraded
                self._answered(message)
            case Prepared() | Done():
                self._answered(message)
            case Ready():
                self.ready = message
                self.ready_s = asyncio.get_running_loop().time()
                self.spoken.set()
            case Unable():
                self.unable = message
            case Told():
                if self.on_told is not None:
                    self.on_told(self, message)
            case Ended(counts):
                self.counts, self.ended = counts, True

    def _answered(self, message: Prepared | Done | Counted) -> None:
        answer = self._asked.get(message.id)
        if answer is not None and not answer.done():
            answer.set_result(message)

    # ---- ending --------------------------------------------------------------------------------------------

    def kill(self, cause: str) -> None:
        """Ends it at once; `cause` is what it is counted and told by."""
        if self._process.poll() is None:
            self._killed_for = self._killed_for or cause
            self._process.kill()

    async def exit(self) -> dict[str, Any]:
        """How it ended, for the log, once it has said its last word: `cause`, and `signal` or `exit`."""
        for _ in range(int(WORKER_END_S / _POLL_S)):
            if self._process.poll() is not None:
                break
            await asyncio.sleep(_POLL_S)
        else:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        status = self._process.returncode
        if self._killed_for:
            return {"cause": self._killed_for}
        if self.unable is not None:
            return {"cause": UNABLE, "why": self.unable.why}
        if status < 0:
            return {"cause": SIGNAL, "signal": _signal_name(-status)}
        return {"cause": EXIT, "exit": status}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _spawn(control: socket.socket) -> subprocess.Popen[bytes]:
    """A fresh interpreter: nothing of a running loop is forked."""
    # Blocked until the worker ignores them itself: a Ctrl-C that comes while it starts is not for it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(control.fileno()), *sys.path],
            stdin=subprocess.DEVNULL,
            pass_fds=[control.fileno()],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
