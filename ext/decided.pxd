# cython: language_level=3
"""What another extension may do with a Decision without Python in between. engine.pyx hands it out in a capsule, as `_decided`."""

# Name of the capsule.
cdef extern from *:
    """
    #define SHIELD_DECIDED "shield.core.engine._decided"
    """
    const char *DECIDED "SHIELD_DECIDED"

cdef struct Decided:
    # Whether it was allowed on the store's truth, with nothing in shadow mode that would have refused. -1: TypeError.
    int (*plain)(object decision) except -1
    # Writes what `to_json` returns; the place behind it, NULL where that would take more than `room_bytes`.
    char *(*put_json)(object decision, char *at, Py_ssize_t room_bytes) except? NULL
