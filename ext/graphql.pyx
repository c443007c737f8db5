# cython: language_level=3
"""A GraphQL document from its bytes to its price.

    Screen.screen(query)                  one pass: is it well-formed and below every ceiling?
    Screen.compile(query, ...)            -> Program: what the operation costs, as far as variables leave it open
    Program.price(variables)              -> Price

Nothing is parsed by anybody else before that, and no text of the document is ever executed or formatted. What a schema
says about costs arrives as tables (SchemaTable), which shield.graphql.schema writes.
"""

import heapq
import os

cimport cython
from cpython.object cimport PyObject
from cpython.float cimport PyFloat_Check
from libc.math cimport isfinite
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from graphql_cost cimport (
    CAP, UNBOUNDED, UNIT, billionths_of, charge_of, cost_add, cost_max, cost_t, cost_times, figure_of, units_of,
)
from graphql_names cimport (
    WELL_KNOWN_NAMES, NameTable, fold, know_names, name_find, name_of, names_close, names_cut, names_open,
)
from graphql_tree cimport *
from keys cimport (
    PyBool_Check, PyLong_AsLongLongAndOverflow, PyLong_Check, PyUnicode_AsUTF8AndSize, PyUnicode_Check,
)

from shield.core.path_cost import PathCost

cdef object path_cost_new = tuple.__new__

cdef extern from "Python.h":
    PyObject *PyDict_GetItem(object d, object key)
    PyObject *PyDict_GetItemWithError(object d, object key) except? NULL
    PyObject *PyList_GET_ITEM(object list, Py_ssize_t i)
    object PyUnicode_InternFromString(const char *text)

include "graphql_lexer.pxi"
include "graphql_parse.pxi"
include "graphql_follow.pxi"
include "graphql_refusal.pxi"
include "graphql_schema.pxi"
include "graphql_program.pxi"
include "graphql_values.pxi"
include "graphql_compile.pxi"
include "graphql_plain.pxi"
include "graphql_evaluate.pxi"
include "graphql_paths.pxi"
include "graphql_screen.pxi"
