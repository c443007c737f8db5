# cython: language_level=3
"""Does a JSON document hold a name twice? For Python; the look itself is in json_members.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from json_members cimport unique_members


def surely_unique(bytes document not None):
    """True: no two names of this valid document are equal, in whichever of its objects. False: some may be."""
    return unique_members(PyBytes_AS_STRING(document), PyBytes_GET_SIZE(document))
