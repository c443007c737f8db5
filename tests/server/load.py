"""Clients that ask a server again and again, each over one connection, and remember what became of every request."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_BODY = json.dumps({"ip": "203.0.113.7"}).encode()


@dataclass
class Load:
    """What has come back until now."""

    url: str
    answered: int = 0
    lost_s: list[float] = field(default_factory=list)
    """Of each request without an answer: when it had been sent."""
    refused: int = 0
    """Connections that were not made."""
    wrong: list[Any] = field(default_factory=list)
    """Answers that are no decision."""
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, body: bytes = _BODY) -> None:
        """One client, until it is told to stop or nobody accepts its connection."""
        parts = urlsplit(self.url)
        connection: http.client.HTTPConnection | None = None
        while not self.stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
                try:
                    connection.connect()
                except OSError:
                    with self._lock:
                        self.refused += 1
                    connection.close()
                    return
            sent_s: float | None = None
            try:
                connection.request("POST", "/v1/check", body)
                sent_s = time.monotonic()
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.lost_s += [sent_s] if sent_s is not None else []
                connection.close()
                connection = None
                continue
            with self._lock:
                self.answered += 1
                if answer.status != 200:
                    self.wrong.append((answer.status, data))
            if answer.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


@contextmanager
def load(url: str, clients: int = 8) -> Iterator[Load]:
    """Clients at work for as long as the `with`; they have ended after it."""
    running = Load(url)
    threads = [threading.Thread(target=running.client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stop.set()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
