# cython: language_level=3
"""HTTP/1.1 requests whose framing is beyond doubt, found in the bytes of a connection, and answers as bytes.

    Lane.look(data, at) -> Head      what begins at `data[at]`, and whether the express lane may take it
    Lane.serve(data, ...)            answers of all that may be taken, in order
    render(answer, ...) -> bytes     one answer
    PlainCheck                       check requests in which nothing is special, decided and answered
    Express, Reader                  of one listener, and of one of its connections: from what is read to what is written
    Poller                           reads and writes of many connections in one call of the event loop

The law here: whoever else reads the same bytes, a gateway in front or the full parser behind, must find the same
requests in them. So nothing is repaired or tolerated. What is taken is a plain subset of RFC 9112, sections 2 to 6:
CRLF line ends, one space where one belongs, token characters in names, no control characters in values, one Host, one
Content-Length of digits, no Transfer-Encoding, no obs-fold. All else is somebody else's to read, byte for byte.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from decided cimport DECIDED, Decided
from json_members cimport unique_members
from request_slots cimport slot_of
from text cimport WHOLE_BYTES, put_whole
from ticks cimport monotonic_s

from email.utils import formatdate
from http import HTTPStatus

from msgspec.structs import force_setattr

from shield.core.engine import _decided

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "time.h":
    ctypedef long time_t
    time_t unix_s "time"(time_t *also) nogil

include "http_head.pxi"
include "http_answer.pxi"
include "tally.pxi"
include "plain_check.pxi"
include "http_routes.pxi"
include "express.pxi"
include "poller.pxi"
