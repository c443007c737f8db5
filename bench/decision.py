"""How much does a whole decision cost: six limits (user, tenant, address; burst and sustained) in one atomic step?

The Request is made for each call from texts built for that call, as behind a gateway.
"""

from __future__ import annotations

import itertools
import time

from shield import Policy, Request, Shield
from shield.request import Nonce

from .record import Row, interleaved

SIX_LIMITS_TOML = 'version = 1\nname = "bench"\n' + "".join(
    f'[[limit]]\nname = "{name}-{kind}"\nkey = {key}\nrate = "{rate}"\nburst = {burst}\n'
    for name, key in (("user", '["tenant", "user"]'), ("tenant", '["tenant"]'), ("address", '["ip"]'))
    for kind, rate, burst in (("burst", "1000000/s", 100_000_000), ("sustained", "1000000/s", 1_000_000_000))
)
SIX_LIMITS = Policy.parse(SIX_LIMITS_TOML)
# Room for every nonce of a run, none of which runs out in it.
NONCES = Policy.parse(
    SIX_LIMITS_TOML + "[guard.replay]\nmax_per_tenant = 10_000_000\nwindow = '1h'\nfuture_skew = '0s'\n"
)
MAX_NONCES = 20_000_000


def run(seconds: float) -> list[Row]:
    shield = Shield(SIX_LIMITS)

    def make(i: int) -> Request:
        return Request(tenant="acme", user=f"user:{i % 5000}", ip=f"203.0.113.{i % 250}")

    def only_request(calls: int) -> None:
        for i in range(calls):
            make(i)

    def check(calls: int) -> None:
        for i in range(calls):
            shield.check_nowait(make(i))

    def check_and_read(calls: int) -> None:
        for i in range(calls):
            decision = shield.check_nowait(make(i))
            _ = decision.limits, decision.headers

    def check_and_print(calls: int) -> None:
        for i in range(calls):
            shield.check_nowait(make(i)).to_json()

    once = Shield(NONCES, f"memory://?max_nonces={MAX_NONCES}")
    time.sleep(0.001)
    made_s, names = time.time(), itertools.count()

    def make_nonced(i: int) -> Request:
        nonce = Nonce(f"nonce-{next(names):026}", made_s)
        return Request(tenant=f"t{i % 100}", user=f"user:{i % 5000}", ip=f"203.0.113.{i % 250}", nonce=nonce)

    def only_nonced(calls: int) -> None:
        for i in range(calls):
            make_nonced(i)

    def check_nonced(calls: int) -> None:
        for i in range(calls):
            assert once.check_nowait(make_nonced(i))

    works = [only_request, check, check_and_read, check_and_print, only_nonced, check_nonced]
    batches = [10_000, 10_000, 2_000, 1_000, 10_000, 10_000]
    request, alone, read, printed, nonced, taken = interleaved(works, batches, seconds)
    return [
        Row("making the Request and its texts", request, "ns"),
        Row("check_nowait, six limits, Request given", alone - request, "ns", "at most 500", alone - request <= 500),
        Row("the same with the Request made", alone, "ns"),
        Row("the same with .limits and .headers read", read - request, "ns", "at most 2,500", read - request <= 2500),
        Row("the same with the answer's JSON made", printed - request, "ns"),
        Row("what a new nonce adds, Request given", taken - nonced - (alone - request), "ns"),
    ]
