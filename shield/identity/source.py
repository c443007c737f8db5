"""The keys of one issuer over time: fetched again when they are old, kept while they cannot be.

    due(now)  -> is it time to fetch?      refresh(now) -> fetches, at most once at a time
    keys(now) -> the keys to verify with, or None when there never were any or they are too old

A failed fetch never takes keys away: they stay until `keep_us` after they were last confirmed. A token that names an
unknown key asks for a fetch (`want`), at most once a minute, and not again for a name that was not there. Nothing here
reads a clock: every instant is Unix time in whole microseconds, given by the caller.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from shield.identity.fetch import FetchError
from shield.identity.jose import TokenError
from shield.identity.keys import KeySet

Loader = Callable[[], bytes]
AsyncLoader = Callable[[], Awaitable[bytes]]
Reader = Callable[[bytes], KeySet]

UNKNOWN_COOLDOWN_US: Final = 60_000_000
"""A fetch for an unknown key at most once a minute: a rotation is noticed soon, and random names do no harm."""
MAX_UNKNOWN: Final = 1_024
"""Names of keys that were asked for and not there. At 256 bytes each 400 KB; the oldest is forgotten first."""
FIRST_RETRY_US: Final = 1_000_000
LAST_RETRY_US: Final = 60_000_000


class KeySource:
    """One issuer's keys. `load` reads them at once (a file), `fetch` takes a while (a URL); one of the two."""

    def __init__(
        self,
        where: str,
        read: Reader,
        *,
        load: Loader | None = None,
        fetch: AsyncLoader | None = None,
        refresh_us: int,
        keep_us: int,
    ) -> None:
        self.where = where
        """The file or URL, for people."""
        self._read = read
        self._load = load
        self._fetch = fetch
        self._refresh_us = refresh_us
        self._keep_us = keep_us
        self._keys: KeySet | None = None
        self._confirmed_us = 0
        self._tried_us: int | None = None
        self._failures = 0
        self._wanted: str | None = None
        self._wanted_us: int | None = None
        self._unknown: OrderedDict[str, int] = OrderedDict()
        self._under_way: asyncio.Task[None] | None = None
        self.why: str | None = None
        """Why the last fetch failed; None when it did not."""
        self.fetches = 0
        self.failed = 0

    @property
    def at_once(self) -> bool:
        """Whether a refresh needs no waiting, so that `refresh_nowait` may be used."""
        return self._load is not None

    def keys(self, now_us: int) -> KeySet | None:
        """The keys in force."""
        return self._keys if self._keys is not None and now_us <= self.until_us else None

    @property
    def until_us(self) -> int:
        """Up to when the keys may be used without being confirmed again."""
        return self._confirmed_us + self._keep_us

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know, one sentence each."""
        notes = (
            [] if self.why is None else [f"{self.why}; {'the old keys stay in use' if self._keys else 'no keys yet'}"]
        )
        return (*notes, *(self._keys.skipped if self._keys is not None else ()))

    def due(self, now_us: int) -> bool:
        """Whether to fetch now: never done, old, asked for, or failed a while ago."""
        if self._under_way is not None and not self._under_way.done():
            return False
        if self._tried_us is None or now_us < self._tried_us or self._wanted is not None:
            return True
        return now_us - self._tried_us >= self._wait_us()

    def _wait_us(self) -> int:
        if self._failures == 0:
            return self._refresh_us
        return min(FIRST_RETRY_US << min(self._failures - 1, 10), LAST_RETRY_US, self._refresh_us)

    def retry_us(self, now_us: int) -> int:
        """How long until the next fetch, for those who need keys when there are none."""
        if self._tried_us is None or now_us < self._tried_us:
            return FIRST_RETRY_US
        return max(self._tried_us + self._wait_us() - now_us, FIRST_RETRY_US)

    def want(self, kid: str, now_us: int) -> None:
        """A token named a key that is not there: it may be new. Asks for a fetch, if that is worth one."""
        until_us = self._unknown.get(kid)
        if until_us is not None and now_us < until_us:
            return
        if self._wanted_us is not None and 0 <= now_us - self._wanted_us < UNKNOWN_COOLDOWN_US:
            return
        self._wanted, self._wanted_us = kid, now_us

    # ---- fetching ----------------------------------------------------------------------------------------------

    def refresh_nowait(self, now_us: int) -> None:
        """Reads a file again. What goes wrong is in `why`."""
        assert self._load is not None
        self._begin(now_us)
        try:
            self._adopt(self._load(), now_us)
        except (FetchError, TokenError, ValueError) as error:
            self._fail(error)

    async def refresh(self, now_us: int) -> None:
        """The same for any source. Whoever comes while a fetch is under way waits for that one."""
        under_way = self.start(now_us)
        if under_way is not None:
            await asyncio.shield(under_way)

    def start(self, now_us: int) -> asyncio.Task[None] | None:
        """The same without waiting for it: the fetch that is under way now. A file has been read already: None."""
        if self._load is not None:
            self.refresh_nowait(now_us)
            return None
        if self._under_way is None or self._under_way.done():
            self._begin(now_us)
            self._under_way = asyncio.get_running_loop().create_task(self._fetch_once(now_us))
        return self._under_way

    async def close(self) -> None:
        """Ends a fetch that is under way."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)

    async def _fetch_once(self, now_us: int) -> None:
        assert self._fetch is not None
        try:
            self._adopt(await self._fetch(), now_us)
        except (FetchError, TokenError, ValueError) as error:
            self._fail(error)
        except Exception as error:
            # Whatever a network may still do to us, the keys we have stay and the next fetch comes.
            self._fail(FetchError(f"{self.where}: {type(error).__name__}"))

    def _begin(self, now_us: int) -> None:
        self._tried_us = now_us
        self.fetches += 1

    def _adopt(self, data: bytes, now_us: int) -> None:
        keys = self._read(data)
        if len(keys) == 0:
            # A service that lost its keys is likelier than one that revoked them all.
            raise FetchError(
                f"{self.where}: holds no key that can be used{'; ' if keys.skipped else ''}"
                + "; ".join(keys.skipped[:3])
            )
        self._keys = keys.succeed(self._keys)
        self._confirmed_us = now_us
        self._failures, self.why = 0, None
        wanted, self._wanted = self._wanted, None
        if wanted is not None and not any(key.kid == wanted for key in keys.keys):
            self._unknown[wanted] = now_us + self._refresh_us
            self._unknown.move_to_end(wanted)
            while len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        self.failed += 1
        self._wanted = None
        self.why = str(error.detail if isinstance(error, TokenError) else error)
