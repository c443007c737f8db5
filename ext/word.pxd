# cython: language_level=3
"""Sixteen bytes that several processes read and swap at once.

The law of this file: a word is read whole and swapped whole, in one instruction or one exclusive pair, never by a lock
(libatomic would take one on compilers that do not trust the instruction). What follows a swap in the program is seen by
everybody after it: the table's proof (slots.pxd) rests on "I write my claim, then I look for yours", which needs that.

x86-64: `lock cmpxchg16b` is a full fence and all else is ordered as written, but for a load before an earlier plain store,
of which there is none here. An aligned `movdqa` is one access on every processor that has AVX, which Intel and AMD
guarantee in their manuals (SDM volume 3, 9.1.1; APM volume 2, 7.3.2); a processor without it is refused when a table is opened.

arm64: `ldaxp`/`stlxp`. A pair load alone may tear before LSE2, so a load stores back what it read: only then was it one
access. What follows a load in the program comes after it (acquire), so a slot's state is read before its key, and a look
goes along a window in order. Acquire and release of these instructions are ordered among themselves (RCsc); the barrier
behind a swap also orders it before plain loads and before the eight-byte acquires, which newer processors may do as ldapr
(RCpc), as Linux does it in its own cmpxchg. A swap that fails has the same barrier: what is looked at next is no older than what
made it fail. What is known of a limit (mapped.pxi) is complete before it can be found: `units` is swapped in before a cell that
names it, and read behind that cell; `window_us` is written before `kind` and read behind it. Counts are added to in no
order, for nothing is decided by them. `tests/arm64.sh` compiles all this for arm64, where it has not run.

Elsewhere there are no words: `word_ready` says so, and a table in a file cannot be opened.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    typedef struct { uint64_t lo, hi; } __attribute__((aligned(16))) shield_word;
    #if defined(__linux__) && defined(__x86_64__)
    static inline int shield_word_ready(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx") != 0;
    }
    static inline shield_word shield_word_load(const shield_word *p) {
        typedef long long pair __attribute__((vector_size(16)));
        union { pair v; shield_word w; } got;
        __asm__ __volatile__("movdqa %1, %0" : "=x"(got.v) : "m"(*p) : "memory");
        return got.w;
    }
    static inline int shield_word_swap(shield_word *p, shield_word old, shield_word want) {
        unsigned char done;
        __asm__ __volatile__("lock cmpxchg16b %1\\n\\tsetz %0"
            : "=q"(done), "+m"(*p), "+a"(old.lo), "+d"(old.hi) : "b"(want.lo), "c"(want.hi) : "cc", "memory");
        return done;
    }
    #elif defined(__linux__) && defined(__aarch64__)
    static inline int shield_word_ready(void) { return 1; }
    static inline shield_word shield_word_load(const shield_word *p) {
        shield_word got;
        uint32_t failed;
        do {
            __asm__ __volatile__("ldaxp %0, %1, %3\\n\\tstlxp %w2, %0, %1, %3"
                : "=&r"(got.lo), "=&r"(got.hi), "=&r"(failed), "+Q"(*(shield_word *)p) : : "memory");
        } while (failed);
        return got;
    }
    static inline int shield_word_swap(shield_word *p, shield_word old, shield_word want) {
        uint64_t lo, hi;
        uint32_t failed;
        int same;
        do {
            __asm__ __volatile__("ldaxp %0, %1, %2" : "=&r"(lo), "=&r"(hi) : "Q"(*p) : "memory");
            same = lo == old.lo && hi == old.hi;
            if (same)
                __asm__ __volatile__("stlxp %w0, %2, %3, %1" : "=&r"(failed), "=Q"(*p) : "r"(want.lo), "r"(want.hi) : "memory");
            else  /* storing back what was read makes the read one access */
                __asm__ __volatile__("stlxp %w0, %2, %3, %1" : "=&r"(failed), "=Q"(*p) : "r"(lo), "r"(hi) : "memory");
        } while (failed);
        __asm__ __volatile__("dmb ish" : : : "memory");
        return same;
    }
    #else
    static inline int shield_word_ready(void) { return 0; }
    static inline shield_word shield_word_load(const shield_word *p) { return *p; }
    static inline int shield_word_swap(shield_word *p, shield_word old, shield_word want) {
        (void)p; (void)old; (void)want;
        return 0;
    }
    #endif
    /* Eight bytes: every supported machine does these by itself. */
    static inline uint64_t shield_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t shield_add64(uint64_t *p, uint64_t more) { return __atomic_fetch_add(p, more, __ATOMIC_RELAXED); }
    static inline int shield_swap64(uint64_t *p, uint64_t old, uint64_t want) {
        return __atomic_compare_exchange_n(p, &old, want, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline void shield_max64(uint64_t *p, uint64_t least) {
        uint64_t seen = shield_load64(p);
        while (seen < least && !shield_swap64(p, seen, least)) seen = shield_load64(p);
    }
    """
    ctypedef struct Word "shield_word":
        uint64_t lo
        uint64_t hi
    bint word_ready "shield_word_ready"() nogil
    Word word_load "shield_word_load"(const Word *p) nogil
    bint word_swap "shield_word_swap"(Word *p, Word old, Word want) nogil
    uint64_t load64 "shield_load64"(const uint64_t *p) nogil
    uint64_t add64 "shield_add64"(uint64_t *p, uint64_t more) nogil
    bint swap64 "shield_swap64"(uint64_t *p, uint64_t old, uint64_t want) nogil
    void max64 "shield_max64"(uint64_t *p, uint64_t least) nogil

cdef inline bint same_word(Word a, Word b) noexcept nogil:
    return a.lo == b.lo and a.hi == b.hi
