# cython: language_level=3
"""One look at a request path: most are normal as they are."""

from keys cimport ascii_of


def plain_end(path):
    """Where the path proper ends (at "?", "#" or the end of the text) if it is normal up to there: ASCII that starts with
    "/", without "%", "//", a segment that starts with ".", or a trailing slash. -1: it has to be worked on, or refused.
    """
    cdef Py_ssize_t size_bytes, i = 0
    cdef const char *text = ascii_of(path, &size_bytes)
    cdef char before = 0
    if text == NULL or size_bytes == 0 or text[0] != b"/":
        return -1
    for i in range(size_bytes):
        if text[i] == b"?" or text[i] == b"#":
            size_bytes = i
            break
        if text[i] == b"%" or (before == b"/" and (text[i] == b"/" or text[i] == b".")):
            return -1
        before = text[i]
    return size_bytes if before != b"/" or size_bytes == 1 else -1
