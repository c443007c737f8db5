# cython: language_level=3
"""Whether a nonce may still be judged: the window its timestamp has to lie in, and what a store may have forgotten.

The law of this file: a request is accepted only where the store would know of an earlier one with the same nonce. A nonce
is held until `timestamp + window + future_skew`, so a store forgets it only when no clock that is `future_skew` off would
accept its timestamp any more. What a store may have forgotten otherwise lies behind a fence:

    since_us     nothing is known from before this instant (a new table, a lost one). A timestamp up to `future_skew` after
                 it may have been accepted before it
    widened_us   nonces that were taken before this instant are held for `before_us` only: the window was narrower then

Times are Unix microseconds of the wall clock.
"""

from libc.stdint cimport int64_t

cdef enum:
    # Processes that share a table read the clock one after the other: a change of the window counts from a little later.
    WIDEN_SLACK_US = 1_000_000

cdef enum NonceVerdict:
    NONCE_FRESH = 0
    NONCE_SEEN = 1          # it was used, and is still held
    NONCE_STALE = 2         # its timestamp lies too far back
    NONCE_EARLY = 3         # its timestamp lies too far ahead: right by waiting
    NONCE_GONE = 4          # it may have been used: what would say so is lost
    NONCE_FULL = 5          # no room to remember it
    NONCE_UNAVAILABLE = 6   # no store to ask

cdef struct Nonce:
    int64_t stamp_us
    int64_t window_us
    int64_t skew_us

cdef struct Fence:
    int64_t since_us
    int64_t widened_us   # 0: never
    int64_t span_us      # the longest that a nonce is held after its timestamp; 0: none was ever taken
    int64_t before_us    # what it was before it was widened

cdef inline bint fence_widen(Fence *fence, int64_t span_us, int64_t now_us) noexcept nogil:
    """From now on nonces are held for `span_us`. True when that is news."""
    if span_us <= fence.span_us:
        return False
    if fence.span_us != 0:
        # Of two changes in one window the narrower holding counts.
        if fence.widened_us == 0 or now_us > fence.widened_us + fence.span_us:
            fence.before_us = fence.span_us
        fence.widened_us = now_us + WIDEN_SLACK_US
    fence.span_us = span_us
    return True

cdef inline int judge_stamp(const Nonce *nonce, const Fence *fence, int64_t now_us, int64_t latest_us, int64_t *retry_us) noexcept nogil:
    """A NonceVerdict. `latest_us`: the latest instant at which this store may have forgotten a nonce. `retry_us`: where it is
    gone, after how long a request that is made anew is not; 0: at once."""
    retry_us[0] = 0
    if nonce.stamp_us - nonce.skew_us > now_us:
        return NONCE_EARLY
    if nonce.stamp_us + nonce.window_us < now_us or nonce.stamp_us + nonce.window_us + nonce.skew_us <= latest_us:
        return NONCE_STALE
    if nonce.stamp_us <= fence.since_us + nonce.skew_us:
        if fence.since_us + nonce.skew_us >= now_us:
            retry_us[0] = fence.since_us + nonce.skew_us + 1 - now_us
        return NONCE_GONE
    if (fence.widened_us != 0 and nonce.stamp_us <= fence.widened_us + nonce.skew_us
            and nonce.stamp_us + fence.before_us <= now_us):
        return NONCE_GONE
    return NONCE_FRESH
