"""Units that a node takes in advance, so that a hot key costs the store a command in a hundred requests and not one
each.

A node that sees a bucket asked for often takes a lease of it (lease.lua): units that it may spend by itself until an
instant. Half-way through it reports what it spent and takes the next one. What it does not need it gives back.

The law of this file is law 1 over all nodes together. At the store a bucket has a level L, which drains at the rate
R, and units O that are out on leases: granted, and not yet reported spent. Burst is B.

1. A lease of g units is granted only where L + O + g <= B; every other charge of the store needs L + O + cost <= B.
2. What is reported spent moves from O to L. What is given back leaves O: it never was in L, so nothing is minted.
3. What is left of a lease when it runs out at the store is charged whole: it moves from O to L at that instant, and
   drains from there on.
4. A node spends of a lease only before it runs out at the store, and never what it has given back.

An admission at t is charged at c >= t: at once by the store, or when it is reported or its lease runs out; from t to
c it is in O. So in any interval [a, b] of the store's clock

    admitted in [a, b]  <=  charged in (a, b] + O(b)  <=  L(b) + R (b - a) + O(b)  <=  B + R (b - a).

Where room is short a lease is granted all the same, with a start: the instant T at which enough will have drained.
Then L + O may pass B until T, because O counts it from the start on and everybody else sees the less; but nothing of
it is spent before T, and without it the sum is what it would have been. L drains by R (T - now) until then, because
it is granted only where O + g <= B: the excess is in L. Leases that are granted later start later, so at each start
the sum is B at most.

Rule 4 against crashes, delays and clocks:

- A node that dies spends nothing any more; rule 3 charges what it held. A reply that is late is not spent: what it
  granted is given back. Reports are cumulative, so one that is lost or overtaken counts once; a lease that is given
  back or used up is told of once and forgotten, whatever becomes of the message.
- A lease that the store lets run out at server instant E is spent here for 0.9 of (E - now) after the request for it
  was *sent*, which was before the server's now; and from 10/9 of (T - now) after its reply was received. That is
  right as long as the two clocks' paces differ by less than a tenth (`DRIFT`). This node's clock counts suspend, and
  is read again in the step that spends, with nothing in between.
- A node that was told that the store does not know a lease spends no more of it. Where the lease was lost with the
  state (a failover that had not copied it, a reset), what was spent of it is charged then.

Not covered, and bounded by what is out on leases (half a burst, where every node knows how many there are): a server
whose clock is set while leases are out, state that a failover lost, and a slot that moves to a server whose clock is
more than a tenth of a lease's life ahead. See the table of faults in the README.

A request is decided here only when all its charges are leased and its purses hold enough, or know when they will; any
other goes to the store whole. A request of which some charge is not leased needs a command all the same: one step
over all of it is exact and all or nothing, and there is nothing to be saved by spending a lease. Nonces and
idempotency keys live in the store, so such a request is never decided here.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from shield.core import Purse, Purses
from shield.errors import StoreError, StoreProtocolError
from shield.store.lane import OutOfMemory
from shield.store.lua import LEASE
from shield.store.resp import bulk
from shield.store.steps import Form, Forms

if TYPE_CHECKING:
    from shield.core import Charges
    from shield.policy.model import Numbers
    from shield.store.instants import Instants
    from shield.store.lane import Late

# What Purses.spend answers.
ELSEWHERE, DECIDED, COLD, SHORT = 0, 1, 2, 3
# What lease.lua answers: its status, and how many numbers stand before those of the leases that were told of.
DONE: Final = 1
OUTCOME: Final = 8

# A lease is for so long a time of the demand that was seen; it is the longest that spent units lie unreported, too,
# and so out of a drain that a lone caller could use.
WINDOW_S: Final = 0.05
# All nodes together hold half a burst at most: the other half drains while it is on its way.
SHARES: Final = 2
# Fewer units are not worth a command.
MIN_UNITS: Final = 8
# How long a lease lives: what a node held that died is out of use for so long.
TTL_US: Final = 1_000_000
# How far away a start may lie. A denial until then is right only if no other node gives back what it holds.
AHEAD_US: Final = 100_000
# By how much the paces of the server's clock and of this node's may differ: a tenth. Crystals differ by 0.0001.
DRIFT: Final = 10
# After how many windows without demand everything is given back.
IDLE_WINDOWS: Final = 4
# The store had nothing to lease: the next time is then, or when it said, whatever is sooner.
PAUSE_US: Final = 1_000_000
# After an exchange that failed.
FAILED_PAUSE_US: Final = 50_000
# Hot keys of one node, 1 KB each; and keys of which demand is counted for one window.
MAX_ACCOUNTS: Final = 4_096
MAX_WATCHED: Final = 65_536
# Requests that wait for the same lease; more go to the store, which has bounds of its own.
MAX_WAITING: Final = 1_024

_HEAD: Final = b"$7\r\nEVALSHA\r\n" + bulk(LEASE.sha) + bulk(b"1")
_FIRST: Final = struct.Struct("<d8s10d")
_TOLD: Final = struct.Struct("<4d")


class Run(Protocol):
    """Runs a script on the server that has a key: one command, one reply or a StoreError; late ones go to `late`."""

    def __call__(self, call: bytes, key: bytes, *, late: Late | None = None) -> Awaitable[Any]: ...


class Account:
    """One hot bucket, and what passes between this node and the store about it."""

    __slots__ = (
        "cell",
        "exchange",
        "form",
        "idle",
        "key",
        "numbers",
        "pause_until_us",
        "purse",
        "told",
        "units",
        "waiting",
    )

    def __init__(self, key: bytes, cell: bytes, form: Form, numbers: Numbers) -> None:
        self.key = key
        self.cell = cell
        self.form = form
        self.numbers = numbers
        self.purse: Purse
        self.units = 0
        """How many units this node wants to hold."""
        self.exchange: asyncio.Task[None] | None = None
        self.waiting = 0
        self.pause_until_us = 0
        self.idle = 0
        self.told = False
        """Whether the store heard of it in this window."""


class Leases:
    """The leases of one node. `run` asks the store, `nodes` says how many live. It belongs to one event loop.

    `clock`, for tests alone: nanoseconds, in place of the system's clock that counts suspend.
    """

    def __init__(
        self,
        forms: Forms,
        run: Run,
        instants: Instants,
        *,
        nodes: Callable[[], int],
        slack_ms: int,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._forms = forms
        self._run = run
        self._instants = instants
        self._nodes = nodes
        self._slack_ms = slack_ms
        self.purses = Purses(self._wake, clock=clock)
        self._accounts: dict[bytes, Account] = {}
        self._seen: dict[bytes, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._counts = dict.fromkeys(
            ("lease_commands", "lease_granted_units", "lease_late", "lease_lost", "lease_failures"), 0
        )

    def stats(self) -> dict[str, int]:
        """Counts since the start; `lease_keys` goes up and down."""
        return {
            **self._counts,
            "lease_decisions": self.purses.decisions,
            "lease_spent_units": self.purses.units,
            "lease_keys": len(self._accounts),
        }

    # ---- one request ----------------------------------------------------------------------------------------------

    async def decide(self, charges: Charges) -> bool:
        """Whether the request was decided here. StoreError: it waited for a lease, and the store does not answer."""
        outcome = self.purses.spend(charges)
        if outcome == COLD:
            self._watch(charges)
        elif outcome == SHORT and (exchange := self._coming(charges)) is not None:
            account, task = exchange
            account.waiting += 1
            try:
                await asyncio.shield(task)
            except (OutOfMemory, StoreProtocolError):
                pass  # there is no lease to be had; the store may still decide
            finally:
                account.waiting -= 1
            outcome = self.purses.spend(charges)
        return outcome == DECIDED

    def _watch(self, charges: Charges) -> None:
        """Counts what is asked of buckets that have no purse, and opens one for those that are hot."""
        if self.purses.policy not in (None, charges.policy):
            return  # a throttled caller's, say, whose numbers are not those of everybody else
        for i in range(len(charges)):
            bucket = charges.bucket(i)
            key = charges.address_of(i)
            if bucket.cost == 0 or key in self._accounts or self._most(bucket.numbers) < MIN_UNITS:
                continue
            if len(self._seen) >= MAX_WATCHED and key not in self._seen:
                continue
            seen = self._seen[key] = self._seen.get(key, 0) + bucket.cost
            if seen >= MIN_UNITS and len(self._accounts) < MAX_ACCOUNTS:
                form = self._forms.of(bucket.limit)
                account = Account(key, form.key(form.address(bucket.partition)), form, bucket.numbers)
                account.purse = self.purses.open(key, charges, i, account)
                account.units = min(seen, self._most(bucket.numbers))
                account.purse.low = account.units // 2
                self._accounts[key] = account
                self._start(account)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WINDOW_S, self._tick)

    def _coming(self, charges: Charges) -> tuple[Account, asyncio.Task[None]] | None:
        """What a request that was short should wait for; None: nothing that would help it is on its way."""
        now_us = self.purses.now_us()
        found = None
        for i in range(len(charges)):
            account = self._accounts.get(charges.address_of(i))
            if account is None:
                return None
            cost = charges.bucket(i).cost
            account.purse.asked += cost
            if account.purse.left(now_us) >= cost:
                continue
            if cost > self._most(account.numbers) or account.waiting >= MAX_WAITING:
                return None
            account.units = max(account.units, cost)
            if account.exchange is None and now_us >= account.pause_until_us:
                self._start(account)
            if account.exchange is None:
                return None
            found = account, account.exchange
        return found

    def _most(self, numbers: Numbers) -> int:
        return numbers.limit // (SHARES * max(1, self._nodes()))

    # ---- what passes between this node and the store ----------------------------------------------------------------

    def _wake(self, purse: Purse) -> None:
        """A purse runs low, in the middle of a request."""
        account: Account = purse.account
        if account.exchange is None and self.purses.now_us() >= account.pause_until_us:
            self._start(account)

    def _start(self, account: Account, *, all: bool = False) -> None:
        account.purse.called = True
        account.exchange = self._task(self._exchange(account, all=all))

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those who waited for it have heard of it

    def _tick(self) -> None:
        """The end of a window: how much is wanted, what lies unreported, what nobody asks for any more."""
        self._timer = None
        self._seen.clear()
        now_us = self.purses.now_us()
        for account in list(self._accounts.values()):
            purse = account.purse
            asked, purse.asked = purse.asked, 0
            account.units = min(max(asked, account.units // 2, MIN_UNITS), self._most(account.numbers))
            purse.low = account.units // 2
            account.idle = 0 if asked else account.idle + 1
            if account.exchange is not None:
                continue
            purse.called = now_us < account.pause_until_us
            told, account.told = account.told, False
            if account.idle >= IDLE_WINDOWS or account.units < MIN_UNITS:
                self._start(account, all=True)
            elif (purse.spent() and not told) or (asked and not purse.called and purse.left(now_us) <= purse.low):
                self._start(account)
        if self._accounts or self._tasks:
            self._timer = asyncio.get_running_loop().call_later(WINDOW_S, self._tick)

    async def _exchange(self, account: Account, *, all: bool = False) -> None:
        """Tells what was spent, gives back what is not wanted, and takes what is."""
        purse = account.purse
        try:
            sent_us = self.purses.now_us()
            held = purse.left(sent_us)
            told = purse.told(sent_us, all=all)
            want = 0
            if not all and purse.room and held <= purse.low and sent_us >= account.pause_until_us:
                want = min(max(account.units, purse.asked), self._most(account.numbers)) - held
            if told or want >= MIN_UNITS:
                account.told = True
                await self._ask(account, told, want if want >= MIN_UNITS else 0, sent_us)
            if all:
                self._forget(account)
        finally:
            account.exchange = None
            purse.called = self.purses.now_us() < account.pause_until_us

    def _forget(self, account: Account) -> None:
        if self._accounts.get(account.key) is account:
            del self._accounts[account.key]
            self.purses.close(account.key)

    async def _ask(self, account: Account, told: list[tuple[int, int, bool, int]], want: int, sent_us: int) -> None:
        name = random.getrandbits(53)
        call = self._encode(account, told, want, name)
        self._counts["lease_commands"] += 1
        try:
            reply = await self._run(call, account.cell, late=lambda reply, _: self._late(reply, account, name))
            now_us, granted, start_us, until_us, units, ticks, out = _read(reply, len(told), want)
        except StoreError:
            self._counts["lease_failures"] += 1
            account.pause_until_us = self.purses.now_us() + FAILED_PAUSE_US
            raise
        received_us = self.purses.now_us()
        purse = account.purse
        for (lease, _, kept, _), known in zip(told, reply[OUTCOME:], strict=True):
            if kept and not known:
                self._counts["lease_lost"] += 1
                purse.drop(lease)
        if granted and self._accounts.get(account.key) is not account:
            self._decline(account, name, until_us)
        elif granted:
            self._counts["lease_granted_units"] += granted
            ahead_us, lives_us = start_us - now_us, until_us - now_us
            spent_from_us = received_us + ahead_us + -(-ahead_us // (DRIFT - 1))
            purse.add(name, granted, spent_from_us, sent_us + lives_us - -(-lives_us // DRIFT), until_us)
        elif want:
            account.pause_until_us = received_us + min(start_us - now_us, PAUSE_US)
        # The store counts as out what it has not heard to be spent: that is either held, or used.
        self.purses.tell(purse, now_us, received_us, units + out - purse.left(received_us), ticks)

    def _encode(self, account: Account, told: list[tuple[int, int, bool, int]], want: int, name: int) -> bytes:
        numbers = account.form.numbers(account.numbers, 0)
        asked = (want, MIN_UNITS, name, TTL_US, AHEAD_US)
        blob = _FIRST.pack(self._slack_ms, account.form.id, *numbers, *asked)
        blob += b"".join([_TOLD.pack(*one) for one in told])
        return b"".join((b"*6\r\n", _HEAD, bulk(account.cell), bulk(blob), bulk(self._instants.wire())))

    def _late(self, reply: Any, account: Account, name: int) -> None:
        """A grant that nobody waits for any more is given back, unspent."""
        if isinstance(reply, list) and len(reply) >= OUTCOME and reply[1] == DONE and reply[2]:
            self._counts["lease_late"] += 1
            self._decline(account, name, reply[4])

    def _decline(self, account: Account, name: int, until_us: int) -> None:
        self._task(self._run(self._encode(account, [(name, 0, False, until_us)], 0, 0), account.cell))

    # ---- the end ----------------------------------------------------------------------------------------------------

    def give_back(self) -> None:
        """Nothing that is held is spent any more: a bucket was reset, or this node ends."""
        for account in list(self._accounts.values()):
            self._forget(account)
            told = account.purse.told(self.purses.now_us(), all=True)
            if told:
                self._task(self._run(self._encode(account, told, 0, 0), account.cell))

    async def close(self) -> None:
        """Gives everything back, if the store answers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.give_back()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _read(reply: Any, told: int, want: int) -> tuple[int, ...]:
    """(now_us, granted, start_us, until_us, units, ticks, out) of a reply. StoreProtocolError for one that is none."""
    if type(reply) is not list or any(type(number) is not int for number in reply):
        raise StoreProtocolError("the store answered for a lease with something else")
    if len(reply) != OUTCOME + told or reply[1] != DONE:
        raise StoreProtocolError("the value at the key of a lease was not written by this version of Shield")
    now_us, _, granted, start_us, until_us, units, ticks, out = reply[:OUTCOME]
    if not 0 <= granted <= want or start_us < now_us or (granted and until_us <= start_us):
        raise StoreProtocolError("the store granted a lease with numbers that make no sense")
    return now_us, granted, start_us, until_us, units, ticks, out
