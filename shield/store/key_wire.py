"""Idempotency keys in the words of keyed.lua and end.lua. Pure: no clock, no I/O.

A record's key and its holder's are digests behind names that no limit has. Two deployments with one server have their
own prefixes, and with them their own keys. In a cluster a holder begins with the tag of its tenant, and both lie in
that tenant's slot, with its limits and nonces; where there is no tenant, in the slot of the user's own limits. An
owner's handle names the holder, so whoever is told how a request ended finds the slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from shield.errors import StoreProtocolError
from shield.guard.idempotency import IN_FLIGHT, MISMATCH, Claim, Key, pack_answer, unpack_answer
from shield.store.key_records import (
    FULL_RETRY_US,
    IN_USE,
    NO_ROOM,
    OTHER_PAYLOAD,
    UNKNOWN_END,
    Ending,
    Held,
    Outcome,
    Seen,
)
from shield.store.lua import END
from shield.store.naming import TAG_BYTES, Names, Naming
from shield.store.resp import bulk, evalsha

if TYPE_CHECKING:
    from shield.core import Charges, Step
    from shield.request import Request

# Verdicts of keyed.lua.
NONE, OTHER, ANSWERED, RUNNING, CROWDED, STUCK = 0, 1, 2, 3, 4, 5
# What it is told of the key.
STRICT, APART = 1, 2
_CLAIM: Final = Struct("<16s16s16sdddd")
_END: Final = Struct("<16s16sdddd")
_ACTIONS: Final = {"complete": 1, "abandon": 2, "extend": 3}
_COMPLETE_AGAIN: Final = 4
_OUTCOMES: Final[dict[int, Outcome]] = {0: "lost", 1: "done", 2: "unknown"}

Told = tuple[int, int, bytes]
"""What keyed.lua says of the key: verdict, microseconds until waiting helps, stored answer."""


class Placing:
    """Where the keys of a request lie."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._users = Names(naming, ("user",))

    def place(self, key: Key, request: Request) -> Key:
        """The key as a store with this naming knows it."""
        if not self._naming.tagged:
            return key
        if request.tenant:
            tag = self._naming.tag(_raw(request.tenant))
        else:
            user = _raw(request.user or "")
            tag = self._users.address(len(user).to_bytes(4, "little") + user)
        return key._replace(holder=tag[:TAG_BYTES] + key.holder[TAG_BYTES:])


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class KeyClaim:
    """A claim on its way, beside the step that it is a part of."""

    __slots__ = ("apart", "claim", "keys", "packed", "told")

    def __init__(self, naming: Naming, claim: Claim) -> None:
        key = claim.key
        self.claim = claim
        self.keys = [bulk(name) for name in key_names(naming, key.address, key.holder)]
        """As arguments on the wire."""
        self.apart = False
        """Whether the record is asked for by itself."""
        self.packed = self._pack(claim.rules.max_keys_per_tenant)
        self.told: Told = (NONE, 0, b"")

    def _pack(self, most: int) -> bytes:
        key, rules = self.claim.key, self.claim.rules
        flags = (STRICT if key.strict else 0) + (APART if self.apart else 0)
        numbers = rules.lease_us, rules.retention_us, most, flags
        return bulk(_CLAIM.pack(self.claim.owner, key.fingerprint, key.address, *numbers))

    def part(self, *, room: bool) -> None:
        """Asks for the record by itself from now on; whether there is `room` for it is known."""
        self.keys = self.keys[:1]
        self.apart = True
        self.packed = self._pack(int(room))

    @property
    def taken(self) -> bool:
        """Whether nothing stood in its way, so that it was taken when the charges were."""
        return self.told[0] == NONE

    @property
    def crowded(self) -> bool:
        """Whether its holder has as many keys as it may."""
        return self.told[0] == CROWDED

    @property
    def answered(self) -> bool:
        """Whether the request was answered before: then it costs nothing, and nothing but a nonce is taken."""
        return self.told[0] == ANSWERED

    @property
    def held(self) -> Held:
        """What it holds once it has been taken."""
        return Held(self.claim.key.address, self.claim.key.holder, self.claim.owner)

    def hear(self, told: Sequence[Any]) -> bool:
        """What the script says; False when it makes no sense."""
        if len(told) != 3:
            return False
        verdict, retry_us, answer = told
        if type(verdict) is not int or type(retry_us) is not int or not isinstance(answer, bytes):
            return False
        self.told = verdict, retry_us, answer
        return NONE <= verdict <= STUCK


def key_names(naming: Naming, address: bytes, holder: bytes) -> list[bytes]:
    """The keys of a record and of its holder's set, which share a slot."""
    prefix = naming.prefix.encode()
    return [naming.key(prefix + b":~key:", address, holder), naming.key(prefix + b":~keys:", holder)]


def end_command(
    naming: Naming, ending: Ending, instant: bytes, *, slack_ms: int, again: bool = False, apart: bool = False
) -> bytes:
    """end.lua for one request. `again`: who was not told whether its answer is kept may say the same once more.
    `apart`: to the record alone.
    """
    held, rules = ending.held, ending.rules
    action = _COMPLETE_AGAIN if again and ending.action == "complete" else _ACTIONS[ending.action]
    packed = _END.pack(held.owner, held.address, action, rules.lease_us, rules.retention_us, slack_ms)
    answer = b"" if ending.answer is None else pack_answer(ending.answer)
    names = key_names(naming, held.address, held.holder)
    return evalsha(END.sha, names[:1] if apart else names, (packed, instant, answer))


def outcome_of(reply: Any) -> Outcome:
    """What end.lua answered. StoreProtocolError."""
    outcome = _OUTCOMES.get(reply) if type(reply) is int else None
    if outcome is None:
        raise StoreProtocolError("the store answered what became of a request with something else")
    return outcome


def turn_away(charges: Charges, step: Step, outcomes: list[list[int]]) -> list[list[int]]:
    """Refuses a request that its key's record stands in the way of. The outcomes of the charges that it has left."""
    assert step.claim is not None
    verdict, retry_us, answer = step.claim.told
    if verdict == NONE:
        return outcomes
    _seen(verdict, retry_us, answer).refuse(charges)
    if verdict == ANSWERED:
        # The nonce is taken with an answer, and is within the tenant's bound: the last charge.
        return outcomes[-1:] if step.nonce is not None else []
    return [outcome for i, outcome in enumerate(outcomes) if step.shape.penalised(i)]


def _seen(verdict: int, retry_us: int, answer: bytes) -> Seen:
    if verdict == OTHER:
        return Seen(MISMATCH, OTHER_PAYLOAD)
    if verdict == CROWDED:
        return Seen("store_full", NO_ROOM, FULL_RETRY_US)
    if verdict in (RUNNING, STUCK):
        return Seen(IN_FLIGHT, UNKNOWN_END if verdict == STUCK else IN_USE, retry_us)
    try:
        stored = unpack_answer(answer)
    except ValueError as error:
        raise StoreProtocolError(str(error)) from None
    return Seen.replay(stored)
