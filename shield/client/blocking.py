"""The client for threads, over the standard library's connections."""

from __future__ import annotations

import http.client
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from shield.answer import HeaderFields
from shield.client.protocol import (
    IDLE_S,
    MAX_ANSWER_BYTES,
    Call,
    Caller,
    Decision,
    Unreachable,
    check_call,
    check_many_call,
    ending_call,
    release_call,
    report_call,
)
from shield.request import Request

T = TypeVar("T")


class BlockingClient(Caller):
    """`Client` for threads: the same arguments, the same methods, and each waits for its answer. Any number of threads
    may share one; a process that was forked starts with connections of its own.
    """

    def _start(self) -> None:
        self._process = os.getpid()
        self._free = threading.BoundedSemaphore(self._pool_size)
        # The one that was used last comes first, so that the others grow old. Both ends are safe among threads.
        self._idle: deque[tuple[http.client.HTTPConnection, float]] = deque()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are idle. A later call opens new ones."""
        while True:
            try:
                self._idle.pop()[0].close()
            except IndexError:
                return

    def check(self, request: Request) -> Decision:
        """One decision. RequestError for a request that is none, EndpointError when the caller itself is refused."""
        return self._call(check_call(request))

    def check_many(self, requests: Sequence[Request]) -> list[Decision]:
        """Up to 256 decisions, each its own step, in order."""
        return self._call(check_many_call(requests)) if requests else []

    def report(
        self,
        receipt: str | None = None,
        *,
        facts: Request | None = None,
        cost: int | None = None,
        bytes: int | None = None,
        type_cost: int | None = None,
        status: int | None = None,
        event: str | None = None,
    ) -> bool:
        """What became of a request: with its receipt what it really took, with its facts what detectors learn from.
        True when something was settled. Unreachable when nobody answers.
        """
        told = {"cost": cost, "bytes": bytes, "type_cost": type_cost, "status": status, "event": event}
        return self._call(report_call(receipt, facts, told))

    def release(self, leases: Sequence[str]) -> int:
        """Gives places back; how many came free. Unreachable when nobody answers."""
        return self._call(release_call(leases)) if leases else 0

    def complete(
        self, owner: str | Decision, status: int, headers: HeaderFields = (), body: bytes | None = b""
    ) -> bool:
        """What a request with an idempotency key was answered, for whoever repeats it. `owner` is the decision, or its
        `idempotency["owner"]`; `body` is None where it is too large to hand over. False when the key is not this
        owner's any more; ReceiptError for an owner of whom nothing is known; Unreachable when nobody answers.
        """
        return self._call(ending_call(owner, "complete", status, headers, body))

    def abandon(self, owner: str | Decision) -> bool:
        """The request did nothing: its key is as if it had never been used. Otherwise as `complete`."""
        return self._call(ending_call(owner, "abandon"))

    def extend(self, owner: str | Decision) -> bool:
        """The request takes longer: its lease starts anew. Otherwise as `complete`."""
        return self._call(ending_call(owner, "extend"))

    def _call(self, call: Call[T]) -> T:
        try:
            status, body = self._post(call.path, call.body)
            return call.result(status, body)
        except Unreachable as error:
            return call.stand_in(self._when_unreachable, error)

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        if os.getpid() != self._process:
            self._start()  # the parent's connections are the parent's
        ends = time.monotonic() + self._deadline_s
        if not self._free.acquire(timeout=self._deadline_s):
            raise Unreachable(f"none of {self._pool_size} connections came free in time")
        connection = self._connection()
        kept = False
        try:
            _set_timeout(connection, ends)
            connection.request("POST", self._endpoint.prefix + path, body, self._headers)
            _set_timeout(connection, ends)
            answer = connection.getresponse()
            read = b""
            while answer.length != 0 and not answer.isclosed():
                _set_timeout(connection, ends)
                read += answer.read1(MAX_ANSWER_BYTES + 1 - len(read))
                if len(read) > MAX_ANSWER_BYTES:
                    raise Unreachable(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            # Where its length was stated and has not come, the connection was cut.
            if answer.length:
                raise Unreachable("the answer was cut off")
            answer.close()
            kept = not answer.will_close
            return answer.status, read
        except (OSError, http.client.HTTPException) as error:  # TimeoutError is an OSError
            raise self._unreachable(error) from None
        finally:
            if kept:
                self._idle.append((connection, time.monotonic()))
            else:
                connection.close()
            self._free.release()

    def _connection(self) -> http.client.HTTPConnection:
        """One that is idle and still open, or a new one."""
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return self._new()
            # Nothing is due on an idle connection: one that can be read was closed.
            if time.monotonic() - since < IDLE_S and not _readable(connection.sock):
                return connection
            connection.close()

    def _new(self) -> http.client.HTTPConnection:
        endpoint = self._endpoint
        if endpoint.scheme == "unix":
            return _UnixConnection(endpoint.path)
        if endpoint.scheme == "https":
            return http.client.HTTPSConnection(endpoint.host, endpoint.port, context=self._tls)
        return http.client.HTTPConnection(endpoint.host, endpoint.port)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._socket_path = path

    def connect(self) -> None:
        """Called by the standard library."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def _readable(sock: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()  # which, unlike select, knows descriptors beyond 1,023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _set_timeout(connection: http.client.HTTPConnection, ends: float) -> None:
    """What is left of the deadline, for the next wait of this connection. TimeoutError when nothing is."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    connection.timeout = left
    if connection.sock is not None:
        connection.sock.settimeout(left)
