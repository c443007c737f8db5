"""Does an attack cost more to refuse than a request to allow, and does anybody else feel it?

One exhausted key, asked by everybody; users that never came before, without end; clients that send their requests a
byte at a time. Each beside the same server without the attack, in turns; costs are processor time of the worker for an
answer, so that a loaded machine does not blur them.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import generator, latency
from .endpoint import Endpoint, serving
from .machine import cores
from .offered import NEEDS
from .record import Found, Measured, Row, Skipped
from .traffic import Traffic, framed

ROUNDS = 5
TRIES, MIN_ANSWERS = 5, 100
SLOW_CLIENTS = 500
HONEST_PER_S = 1_000


def run(seconds: float, seed: int) -> list[Found]:
    if sys.platform != "linux":
        return [Skipped("attacks on the endpoint", NEEDS)]
    return [*_exhausted(seconds, seed), *_newcomers(seconds, seed), *_slow(seconds, seed)]


def cost(server: Endpoint, traffic: Traffic, seconds: float, seed: int) -> float:
    """Microseconds of the worker's processor time for an answer."""
    for _ in range(TRIES):
        before = sum(server.cpu_s())
        rate = generator.saturate(server.port, traffic, seconds, core=cores()[-1], seed=seed)
        if rate * seconds >= MIN_ANSWERS:
            return (sum(server.cpu_s()) - before) / (rate * seconds) * 1e6
    raise RuntimeError(f"the server gave fewer than {MIN_ANSWERS} answers in {seconds:g} s, {TRIES} times")


def in_turns(works: list[Callable[[], float]]) -> list[Measured]:
    """Each work's figure, ROUNDS times, after one that warms up."""
    taken: list[list[float]] = [[] for _ in works]
    for turn in range(ROUNDS + 1):
        for at, work in enumerate(works):
            figure = work()
            if turn:
                taken[at].append(figure)
    return [Measured(samples) for samples in taken]


def _exhausted(seconds: float, seed: int) -> list[Found]:
    allowed, refused = Traffic(denied=1e-9), Traffic(denied=1.0)  # the same policy
    with allowed.folder() as policy, serving(policy, cores=cores()[:1]) as server:
        asks = [lambda one=one: cost(server, one, seconds, seed) for one in (allowed, refused)]
        allow_us, refuse_us = in_turns(asks)
    times = refuse_us / allow_us
    return [
        Row("endpoint: an allowed request, six limits", allow_us, "us"),
        Row("endpoint: a request on a limit that is used up", refuse_us, "us"),
        Row("endpoint: refused against allowed", times, "times"),
    ]


def _newcomers(seconds: float, seed: int) -> list[Found]:
    usual, fresh = Traffic(), Traffic(fresh=True)
    with usual.folder() as policy, serving(policy, cores=cores()[:1]) as server:
        before = server.resident_bytes()
        turn = iter(range(seed * 100, seed * 100 + 100))  # newcomers every time
        known_us, new_us = in_turns(
            [lambda: cost(server, usual, seconds, seed), lambda: cost(server, fresh, seconds, next(turn))]
        )
        grown = server.resident_bytes() - before
    return [
        Row("endpoint: users that never came before against known ones", new_us / known_us, "times"),
        Row("endpoint: memory that newcomers took", grown / 1e6, "MB"),
    ]


def _slow(seconds: float, seed: int) -> list[Found]:
    traffic = Traffic()
    with traffic.folder() as policy, serving(policy, cores=cores()[:1]) as server:

        def honest() -> generator.Load:
            lasts, core = max(1.0, seconds), cores()[-1:]
            return generator.generate(server.port, traffic, HONEST_PER_S, lasts, seed=seed, cores=core)

        quiet_us = [cost(server, traffic, seconds, seed) for _ in range(2)][1]
        alone = honest()
        with dripping(server.port, SLOW_CLIENTS):
            beside = honest()
            dripped_us = cost(server, traffic, seconds, seed)
    found: list[Found] = [
        Row(f"endpoint: an answer beside {SLOW_CLIENTS} slow clients against alone", dripped_us / quiet_us, "times")
    ]
    for name, load in (("alone", alone), (f"beside {SLOW_CLIENTS} slow clients", beside)):
        what = f"endpoint: p99 of {HONEST_PER_S:,}/s {name}"
        found.append(Skipped(what, load.doubt) if load.doubt else Row(what, latency.ms(load.latency, 99), "ms"))
    return found


@contextmanager
def dripping(port: int, many: int) -> Iterator[None]:
    """So many connections that send one byte of a request each half second."""
    request = framed(b'{"user":"slow","ip":"203.0.113.7"}')
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(many)]
    ended = threading.Event()

    def drip() -> None:
        at = 0
        while not ended.wait(0.5):
            for one in sockets:
                try:
                    one.send(request[at % len(request) :][:1])
                except OSError:
                    continue  # the server has had enough of it, as it may
            at += 1

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for one in sockets:
            one.close()
