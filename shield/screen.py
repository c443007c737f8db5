"""What a request passes before its limits: the blocks; and what numbers it meets when it has been throttled.

    request -> of_address -> identity -> of_subject -> policy_for(request).charges(request) -> ...

A block of its address is asked for before who it comes from, one of its user, tenant or key after, when these are
certain. Allow lists win over both. Where identity is verified, only a verified name is on an allow list: then a request
from a blocked address has to say who it is before it is refused, and where it cannot it is refused as blocked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shield.abuse import Abuse
from shield.block.block import Block
from shield.core import Charges, CompiledPolicy
from shield.errors import StoreError
from shield.policy import Policy
from shield.policy.throttle import Throttle, field_of, throttles_of
from shield.request import Request

if TYPE_CHECKING:
    from shield.core import SharedTable, Table
    from shield.store import Store

    Compile = Callable[..., CompiledPolicy]


class Screen:
    """One policy's. `compile` makes what decides by a policy, `under` the numbers of a throttle; PolicyError. `gated`:
    identity is verified.
    """

    def __init__(self, policy: Policy, abuse: Abuse, compile: Compile, *, gated: bool) -> None:
        self._abuse = abuse
        self._asks_who = gated and bool(
            policy.blocks.allow_users or policy.blocks.allow_tenants or policy.blocks.allow_api_keys
        )
        # A blocked request meets no guard and no limit, but malformed values and limits that count refusals.
        bare = replace(
            policy,
            limits=tuple(replace(one, missing="skip") for one in policy.limits),
            size=None,
            graphql=None,
            replay=None,
            idempotency=None,
        )
        self._refusing = compile(bare)
        self._throttled = {one: compile(policy, under=one.prefix) for one in throttles_of(policy.detectors)}

    def of_address(self, request: Request) -> Block | None:
        """The block that refuses a request for its address, whoever it comes from."""
        block = None if self._asks_who else self._abuse.block_of_address(request)
        return block if block is not None and self._refuses(block, request) else None

    def of_unknown(self, request: Request) -> Block | None:
        """The block that refuses a request which did not get through identity: whatever name it states is nobody's."""
        block = self._abuse.block_of_address(request) if self._asks_who else None
        return block if block is not None and self._abuse.refuses(block, request) else None

    def of_subject(self, request: Request) -> Block | None:
        """The block that refuses a request whose user, tenant and key are certain."""
        block = self._abuse.block_of_address(request) if self._asks_who else None
        block = block or self._abuse.block_of_subject(request)
        return block if block is not None and self._refuses(block, request) else None

    def _refuses(self, block: Block, request: Request) -> bool:
        return not self._abuse.allows(request) and self._abuse.refuses(block, request)

    def refuse(self, request: Request, block: Block, table: Table | SharedTable) -> Charges:
        """Refuses it: limits that count refusals are charged, no others."""
        charges = self._refusal(request, block)
        table.apply(charges)
        return charges

    async def refuse_through(self, request: Request, block: Block, table: Table | SharedTable, store: Store) -> Charges:
        """The same with a store that must be asked, if there is anything to ask it."""
        charges = self._refusal(request, block)
        if len(charges) == 0:
            table.apply(charges)
            return charges
        try:
            await store.apply(charges)
        except StoreError:
            table.apply(charges, degraded=True)
        return charges

    def _refusal(self, request: Request, block: Block) -> Charges:
        charges = self._refusing.charges(request)
        left_us = 0 if block.until_us is None else max(0, block.until_us - self._abuse.now_us())
        charges.turn_away(block.reason, f"{block.kind}: {block.reason}", left_us)
        return charges

    def policy_for(self, request: Request, compiled: CompiledPolicy) -> CompiledPolicy:
        """What decides about a request: the policy, or what is left of it to whom was throttled."""
        if not self._throttled:
            return compiled
        throttle = self._abuse.throttle_of(request)
        if throttle is None:
            return compiled
        return self._throttled.get(Throttle(field_of(throttle.kind), throttle.factor), compiled)
