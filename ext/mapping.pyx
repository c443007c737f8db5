# cython: language_level=3
"""A whole file in memory, shared and writable, so placed that the system may use huge pages for it.

A few thousand keys strewn over a large table lie on as many pages, and finding a page costs as much as all else about a
key: on huge pages the table of `shared://` costs a tenth less than half as much again.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_SetFromErrno

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #if !defined(MAP_ANONYMOUS)
    #define MAP_ANONYMOUS MAP_ANON
    #endif
    #define SHIELD_HUGE ((size_t)2 << 20)
    /* Room for it and for the largest step to a multiple of a huge page; then the file over the part that is wanted. */
    static void *shield_map_file(int fd, size_t size_bytes) {
        size_t room = size_bytes + SHIELD_HUGE;
        char *start = (char *)mmap(0, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char *at, *end;
        void *got;
        int why;
        if (start == (char *)MAP_FAILED) return 0;
        at = (char *)(((uintptr_t)start + SHIELD_HUGE - 1) & ~(uintptr_t)(SHIELD_HUGE - 1));
        got = mmap(at, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
        if (got == MAP_FAILED) {
            why = errno;
            munmap(start, room);
            errno = why;
            return 0;
        }
        end = (char *)(((uintptr_t)at + size_bytes + 4095) & ~(uintptr_t)4095);
        if (at > start) munmap(start, (size_t)(at - start));
        if (end < start + room) munmap(end, (size_t)(start + room - end));
        return got;
    }
    static void shield_unmap_file(void *at, size_t size_bytes) { munmap(at, size_bytes); }
    /* Linux 6.1 and later, for files in memory: at once, whatever the system does by itself. */
    static int shield_use_huge_pages(void *at, size_t size_bytes) {
        size_t whole = size_bytes & ~(SHIELD_HUGE - 1);
    #if defined(__linux__)
        return whole != 0 && madvise(at, whole, 25 /* MADV_COLLAPSE */) == 0;
    #else
        (void)at; (void)whole;
        return 0;
    #endif
    }
    """
    void *map_file "shield_map_file"(int fd, size_t size_bytes) nogil
    void unmap_file "shield_unmap_file"(void *at, size_t size_bytes) nogil
    bint collapse "shield_use_huge_pages"(void *at, size_t size_bytes) nogil


@cython.final
cdef class Mapping:
    """The first `size_bytes` of a file, as a buffer. Lives as long as anything that looks at it. OSError."""

    cdef void *at
    cdef readonly size_t size_bytes

    def __cinit__(self, int fd, size_t size_bytes):
        if size_bytes < 1:
            raise ValueError("an empty file cannot be mapped")
        self.at = map_file(fd, size_bytes)
        if self.at == NULL:
            PyErr_SetFromErrno(OSError)
        self.size_bytes = size_bytes

    def __dealloc__(self):
        if self.at != NULL:
            unmap_file(self.at, self.size_bytes)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.at, <Py_ssize_t>self.size_bytes, False, flags)

    def use_huge_pages(self):
        """Asks for them at once. False where the system has none for such a file: nothing else depends on it."""
        cdef bint done
        with nogil:
            done = collapse(self.at, self.size_bytes)
        return done
