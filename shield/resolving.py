"""From a policy, and what operators allow single keys of it, to what decides."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shield.abuse import Abuse
from shield.compile import compile_policy
from shield.core import CompiledPolicy
from shield.errors import PolicyError, PolicyIssue
from shield.policy import Policy
from shield.policy.override import with_overrides
from shield.receipt import limit_digest
from shield.screen import Screen
from shield.sequel import Sequel

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shield.core import SharedTable, Table
    from shield.gate import Gate
    from shield.guard.graphql import PriceGuard
    from shield.guard.idempotency import KeyGuard


class Resolving(Sequel):
    """The part of `shield.Shield` that resolves its policy, anew when an override comes or goes."""

    abuse: Abuse
    _in_force: Policy
    """The policy with its overrides."""
    _overridden: int
    """The version of the overrides in it."""
    _screen: Screen
    _gate: Gate | None
    _keys: KeyGuard | None
    _table: Table | SharedTable
    _prices: PriceGuard | None
    _trace: Callable[[dict[str, Any]], None] | None

    def _compile(self, policy: Policy, prices: PriceGuard | None = None, under: str | None = None) -> CompiledPolicy:
        if policy.idempotency is not None and not getattr(self.store, "keeps_keys", False):
            raise PolicyError([PolicyIssue("guard.idempotency", "this store does not keep idempotency keys")])
        prices = prices if policy.graphql is not None else None
        try:
            return compile_policy(policy, self._local.registry, prices, under)
        except MemoryError as error:
            raise PolicyError([PolicyIssue("", f"no room for this policy: {error}")]) from None

    def _resolve(self, policy: Policy, prices: PriceGuard | None, gate: Gate | None) -> None:
        """What decides from now on. PolicyError, which changes nothing."""
        overrides = self.abuse.blocks.overrides
        in_force = with_overrides(policy, overrides.by_limit(self.abuse.now_us()))
        compiled = self._compile(in_force, prices)
        screen = Screen(in_force, self.abuse, partial(self._compile, prices=prices), gated=gate is not None)
        if gate is not None:
            gate.compile(in_force)
        self._overridden, self._in_force = overrides.version, in_force
        self._compiled, self._screen = compiled, screen
        self._limits = {limit_digest(limit.identity): limit for limit in compiled.limits}

    def _route(self) -> None:
        """After blocks or overrides have changed: what `check_nowait`, which is compiled, decides with. A gate and
        blocks are asked first, idempotency keys are looked for, and detectors are shown what was decided:
        `_decide_elsewhere`.
        """
        if self.abuse.blocks.overrides.version != self._overridden:
            self._resolve(self.policy, self._prices, self._gate)
            if (forget := getattr(self.store, "forget_denials", None)) is not None:
                forget()
        self._only_limits = alone = self._gate is None and self._keys is None and not self.abuse.active
        here = self._table if self.store.local and alone else None
        self.decide_here(self._compiled, here, traced=self._trace is not None)
        self.decide_from(getattr(self.store, "purses", None), at_once=alone and self._trace is None)
