"""Values of arguments and variables: are they of their type, how long a list do they ask for, what do they cost.

A value is a node of the document, a Python object out of the variables or a default, or missing. A variable that was not
given is missing, and one that was given as null is null: the first leaves a default in force, the second does not.
"""

cdef struct Value:
    int32_t node        # -1: not a node
    PyObject *object    # NULL: not an object. Both: missing

cdef inline Value missing() noexcept nogil:
    cdef Value v
    v.node = -1
    v.object = NULL
    return v

cdef inline Value of_node(int32_t node) noexcept nogil:
    cdef Value v
    v.node = node
    v.object = NULL
    return v

cdef inline Value of_object(PyObject *object) noexcept nogil:
    cdef Value v
    v.node = -1
    v.object = object
    return v

cdef str kind_of(object value):
    """A variable's value in a sentence."""
    if value is None:
        return "null"
    text = repr(value) if not isinstance(value, (dict, list, tuple)) else type(value).__name__
    return text if len(text) <= 64 else text[:64] + "..."

cdef int64_t literal_int(const char *text, int32_t size) noexcept nogil:
    """An INT token's value, saturating at UNBOUNDED; a negative one is -1."""
    cdef int64_t value = 0
    cdef int32_t i
    if text[0] == b'-':
        for i in range(1, size):
            if text[i] != b'0':
                return -1
        return 0
    for i in range(size):
        value = value * 10 + (text[i] - 48)
        if value > UNBOUNDED:
            return UNBOUNDED
    return value

cdef bint fits_int32(const char *text, int32_t size) noexcept nogil:
    cdef int64_t value = 0
    cdef int32_t i = 1 if text[0] == b'-' else 0
    while i < size:
        value = value * 10 + (text[i] - 48)
        if value > <int64_t>2147483648:
            return False
        i += 1
    return value <= 2147483647 or text[0] == b'-'

# ---- are they of their type? -------------------------------------------------------------------------------------

cdef int check_scalar_object(Program p, TypeRef ref, PyObject *value, str where) except -1:
    cdef object v = <object>value
    cdef bint fine
    cdef long long whole
    cdef int overflow = 0
    if ref.scalar == INT_SCALAR:
        fine = PyLong_Check(v) and not PyBool_Check(v)
        if fine:
            whole = PyLong_AsLongLongAndOverflow(v, &overflow)
            if overflow or not -2147483648 <= whole <= 2147483647:
                raise Refusal("graphql_invalid", f"{where}: {kind_of(v)} does not fit in an Int")
        wanted = "an Int"
    elif ref.scalar == FLOAT_SCALAR:
        fine = (PyLong_Check(v) and not PyBool_Check(v)) or (PyFloat_Check(v) and isfinite(<double>v))
        wanted = "a Float"
    elif ref.scalar == STRING_SCALAR:
        fine = PyUnicode_Check(v)
        wanted = "a String"
    elif ref.scalar == BOOLEAN_SCALAR:
        fine = PyBool_Check(v)
        wanted = "a Boolean"
    elif ref.scalar == ID_SCALAR:
        fine = PyUnicode_Check(v) or (PyLong_Check(v) and not PyBool_Check(v))
        wanted = "an ID"
    else:
        return 0
    if not fine:
        raise Refusal("graphql_invalid", f"{where}: found {kind_of(v)}, which is not {wanted}")
    return 0

cdef int check_object(Program p, TypeRef ref, int32_t level, PyObject *value, str where, int32_t depth) except -1:
    """Refuses a value that is not of its type; `level` pairs of brackets of the type have been looked through."""
    cdef TypeInfo *t
    cdef dict by_name
    cdef int32_t i, at
    cdef object v = <object>value, item
    if depth > p.limits.value_depth:
        raise Refusal("graphql_depth", f"{where}: lists and input objects within each other: more than allowed, "
                      f"{p.limits.value_depth}", depth, p.limits.value_depth)
    if v is None:
        if (ref.non_null >> level) & 1:
            raise Refusal("graphql_invalid", f"{where}: found null where a value is needed")
        return 0
    if level < ref.lists:
        if isinstance(v, (list, tuple)):
            i = 0
            for item in v:
                check_object(p, ref, level + 1, <PyObject *>item, where, depth + 1)
            return 0
        return check_object(p, ref, level + 1, value, where, depth)  # one value stands for a list of it
    if ref.type < 0 or p.schema.types[ref.type].kind == SCALAR:
        return check_scalar_object(p, ref, value, where)
    t = &p.schema.types[ref.type]
    if t.kind == ENUM:
        if not PyUnicode_Check(v) or v not in p.schema.enums[ref.type]:
            raise Refusal("graphql_invalid", f"{where}: found {kind_of(v)}, which is no value of {p.type_name(ref.type)}")
        return 0
    if not isinstance(v, dict):
        raise Refusal("graphql_invalid", f"{where}: found {kind_of(v)}, which is no {p.type_name(ref.type)}")
    by_name = p.schema.input_types[ref.type]
    for key, item in (<dict>v).items():
        found = by_name.get(key)
        if found is None:
            raise Refusal("graphql_invalid", f"{where}: {kind_of(key)} is no field of {p.type_name(ref.type)}")
        at = found
        check_object(p, p.schema.inputs[at].ref, 0, <PyObject *>item, f"{where}.{key}", depth + 1)
    for i in range(t.first_input, t.first_input + t.n_inputs):
        if p.schema.inputs[i].required and p.schema.strings[p.schema.inputs[i].name] not in <dict>v:
            raise Refusal("graphql_invalid", f"{where}: {p.schema.strings[p.schema.inputs[i].name]} is missing")
    return 0

cdef bint may_stand(TypeRef variable, bint has_default, TypeRef place, int32_t level, bint place_has_default) noexcept nogil:
    """Whether a variable may be used where `place`, seen from `level` brackets in, is wanted (specification, 5.8.5)."""
    cdef int32_t i, lists = place.lists - level
    if variable.lists != lists or variable.type != place.type:
        return False
    if variable.type < 0 and variable.scalar != place.scalar:
        return False
    for i in range(lists + 1):
        if (place.non_null >> (level + i)) & 1 and not (variable.non_null >> i) & 1:
            if i or not (has_default or place_has_default):
                return False
    return True

cdef int check_node(Program p, TypeRef ref, int32_t level, int32_t node, bint has_default) except -1:
    """The same for a value that stands in the document. How deep it nests is bounded by the pass."""
    cdef Node *n = &p.nodes[node]
    cdef TypeInfo *t
    cdef int32_t item, i, at, kind = n.kind
    cdef bint fine
    if kind == VARIABLE:
        if n.name < 0:
            raise p.refusal(node, f"{p.text_of(node)} is not defined by the operation")
        if not may_stand(p.variables[n.name].ref, p.variables[n.name].default >= 0, ref, level, has_default):
            raise p.refusal(node, f"${p.variable_names[n.name]} is not of the type that is needed here")
        return 0
    if kind == NULL_VALUE:
        if (ref.non_null >> level) & 1:
            raise p.refusal(node, "null where a value is needed")
        return 0
    if level < ref.lists:
        if kind != LIST:
            return check_node(p, ref, level + 1, node, False)
        item = n.child
        while item >= 0:
            check_node(p, ref, level + 1, item, False)
            item = p.nodes[item].next
        return 0
    if ref.type < 0 or p.schema.types[ref.type].kind == SCALAR:
        if ref.scalar == INT_SCALAR:
            fine = kind == INT and fits_int32(p.source + n.start, n.end - n.start)
        elif ref.scalar == FLOAT_SCALAR:
            fine = kind == INT or kind == FLOAT
        elif ref.scalar == STRING_SCALAR:
            fine = kind == STRING
        elif ref.scalar == BOOLEAN_SCALAR:
            fine = kind == TRUE or kind == FALSE
        elif ref.scalar == ID_SCALAR:
            fine = kind == STRING or kind == INT
        else:
            return check_free(p, node)
        if not fine:
            raise p.refusal(node, f"{p.text_of(node)} is not {SCALARS[ref.scalar]}")
        return 0
    t = &p.schema.types[ref.type]
    if t.kind == ENUM:
        if kind != ENUM_VALUE or n.name < 0 or p.schema.strings[n.name] not in p.schema.enums[ref.type]:
            raise p.refusal(node, f"{p.text_of(node)} is no value of {p.type_name(ref.type)}")
        return 0
    if kind != OBJECT:
        raise p.refusal(node, f"{p.text_of(node)} is no {p.type_name(ref.type)}")
    item = n.child
    while item >= 0:
        at = p.schema.input_of(ref.type, p.nodes[item].name)
        if at < 0:
            raise p.refusal(item, f"{p.text_of(item)} is no field of {p.type_name(ref.type)}")
        check_node(p, p.schema.inputs[at].ref, 0, p.nodes[item].child, p.schema.inputs[at].default >= 0)
        item = p.nodes[item].next
    for i in range(t.first_input, t.first_input + t.n_inputs):
        if p.schema.inputs[i].required:
            item = n.child
            while item >= 0 and p.nodes[item].name != p.schema.inputs[i].name:
                item = p.nodes[item].next
            if item < 0:
                raise p.refusal(node, f"{p.schema.strings[p.schema.inputs[i].name]} is missing")
    return 0

cdef int check_free(Program p, int32_t node) except -1:
    """A value of a custom scalar may be anything, but its variables must be defined."""
    cdef int32_t item = -1
    if p.nodes[node].kind == VARIABLE and p.nodes[node].name < 0:
        raise p.refusal(node, f"{p.text_of(node)} is not defined by the operation")
    if p.nodes[node].flag and (p.nodes[node].kind == LIST or p.nodes[node].kind == OBJECT):
        item = p.nodes[node].child
    while item >= 0:
        check_free(p, p.nodes[item].child if p.nodes[item].kind == OBJECT_FIELD else item)
        item = p.nodes[item].next
    return 0

SCALARS = ("", "an Int", "a Float", "a String", "a Boolean", "an ID")

# ---- what do they stand for? -------------------------------------------------------------------------------------

cdef inline Value resolved(Program p, int32_t node) noexcept:
    """What a node stands for now that the variables are known."""
    cdef Variable *v
    if p.nodes[node].kind != VARIABLE:
        return of_node(node)
    if p.nodes[node].name < 0:
        return missing()
    v = &p.variables[p.nodes[node].name]
    if v.state == GIVEN:
        return of_object(p.given[p.nodes[node].name])
    if v.state == DEFAULTED:
        return of_node(v.default)
    return missing()

cdef inline Value effective(Program p, Value v, const InputInfo *i) noexcept:
    """The value, or the default of the argument or input field when there is none."""
    if v.node < 0 and v.object == NULL and i.default >= 0:
        return of_object(<PyObject *>PyList_GET_ITEM(p.schema.defaults, i.default))
    return v

cdef inline Value argument_value(Program p, int32_t node, int32_t name) noexcept:
    """The value that a field or directive gives to one of its arguments."""
    cdef int32_t a = p.nodes[node].args
    while a >= 0:
        if p.nodes[a].name == name:
            return resolved(p, p.nodes[a].child)
        a = p.nodes[a].next
    return missing()

cdef inline Value member(Program p, Value v, int32_t name):
    """A field of an object, however the object is given."""
    cdef int32_t item
    cdef PyObject *found
    if v.node >= 0 and p.nodes[v.node].kind == OBJECT:
        item = p.nodes[v.node].child
        while item >= 0:
            if p.nodes[item].name == name:
                return resolved(p, p.nodes[item].child)
            item = p.nodes[item].next
    elif v.object != NULL and isinstance(<object>v.object, dict):
        found = PyDict_GetItem(<object>v.object, p.schema.strings[name])
        if found != NULL:
            return of_object(found)
    return missing()

cdef int64_t size_of_value(Program p, Value v, int32_t node, bint of_list) except -2:
    """The list size that a slicing argument's value means: a number, or the length of a list; -1 when there is none.

    `of_list`: the argument takes a list, so that anything else is a list of one. Negative numbers are 0: what they do varies from server to server, and none of it is worth a discount elsewhere.
    """
    cdef int64_t n
    cdef int32_t item
    cdef int overflow = 0
    cdef Node *at
    if v.node >= 0:
        at = &p.nodes[v.node]
        if at.kind == NULL_VALUE:
            return -1
        if of_list and at.kind != LIST:
            return 1
        if at.kind == INT:
            return max(0, literal_int(p.source + at.start, at.end - at.start))
        if at.kind == LIST:
            n = 0
            item = at.child
            while item >= 0:
                n += 1
                item = p.nodes[item].next
            return n
        raise p.refusal(v.node, f"{p.text_of(v.node)} is no size of a list")
    if v.object == NULL or <object>v.object is None:
        return -1
    if of_list and not isinstance(<object>v.object, (list, tuple)):
        return 1
    if PyLong_Check(<object>v.object) and not PyBool_Check(<object>v.object):
        n = PyLong_AsLongLongAndOverflow(<object>v.object, &overflow)
        if overflow > 0 or n > UNBOUNDED:
            return UNBOUNDED
        return 0 if overflow or n < 0 else n
    if isinstance(<object>v.object, (list, tuple)):
        return len(<object>v.object)
    raise p.refusal(node, f"{kind_of(<object>v.object)} is no size of a list")

cdef int64_t asked_size(Program p, const FieldInfo *f, int32_t node) except -2:
    """What @listSize and the arguments of one field say of the length of its list; -1: nothing."""
    cdef ListSize *l = &p.schema.list_sizes[f.list_size]
    cdef int64_t largest = -1, n
    cdef int32_t i, j, input, found = 0
    cdef Path *path
    cdef Value v
    for i in range(l.first_path, l.first_path + l.n_paths):
        path = &p.schema.paths[i]
        input = p.schema.argument_of(f, p.schema.segments[path.first])
        if input < 0:
            continue
        v = effective(p, argument_value(p, node, p.schema.segments[path.first]), &p.schema.inputs[input])
        for j in range(1, path.n):
            input = p.schema.input_of(p.schema.inputs[input].ref.type, p.schema.segments[path.first + j])
            if input < 0:
                break
            v = member(p, v, p.schema.segments[path.first + j]) if (
                v.object == NULL or <object>v.object is not None
            ) else missing()
            v = effective(p, v, &p.schema.inputs[input])
        n = size_of_value(p, v, node, p.schema.inputs[input].ref.lists > 0) if input >= 0 else -1
        if n >= 0:
            found += 1
            largest = max(largest, n)
    if p.dialect == ROUTER and l.require_one and l.n_paths and found != 1:
        raise p.refusal(node, f"{p.schema.strings[f.name]}: exactly one slicing argument is needed; found {found}")
    if largest >= 0:
        return largest
    if l.n_paths and l.slicing_default >= 0:
        return l.slicing_default
    return l.assumed

# ---- what do they cost? ------------------------------------------------------------------------------------------

cdef cost_t inside(Program p, Value v, int32_t type, int32_t depth) except *:
    """ibm: what the fields of an input object cost, or of those in a list; a list itself adds nothing."""
    cdef cost_t cost = <cost_t>0
    cdef int32_t item, at, i
    cdef TypeInfo *t
    cdef PyObject *object
    if type < 0 or p.schema.types[type].kind != INPUT_OBJECT or depth > 2 * MAX_VALUE_DEPTH:
        return cost
    t = &p.schema.types[type]
    if v.node >= 0:
        if p.nodes[v.node].kind == LIST:
            item = p.nodes[v.node].child
            while item >= 0:
                cost = cost_add(cost, inside(p, resolved(p, item), type, depth + 1))
                item = p.nodes[item].next
            return cost
        if p.nodes[v.node].kind != OBJECT:
            return cost
        item = p.nodes[v.node].child
        while item >= 0:
            at = p.schema.input_of(type, p.nodes[item].name)
            if at >= 0 and p.schema.inputs[at].costly:
                cost = cost_add(cost, input_cost(p, resolved(p, p.nodes[item].child), at, depth))
            item = p.nodes[item].next
    elif v.object != NULL:
        if isinstance(<object>v.object, (list, tuple)):
            for one in <object>v.object:
                cost = cost_add(cost, inside(p, of_object(<PyObject *>one), type, depth + 1))
            return cost
        if not isinstance(<object>v.object, dict):
            return cost
        by_name = <dict>p.schema.input_types[type]
        for key, one in (<dict><object>v.object).items():
            at = by_name.get(key, -1)
            if at >= 0 and p.schema.inputs[at].costly:
                cost = cost_add(cost, input_cost(p, of_object(<PyObject *>one), at, depth))
    else:
        return cost
    for i in range(t.first_default, t.first_default + t.n_defaults):
        at = p.schema.defaulted[i]
        if not p.schema.inputs[at].costly:
            continue
        if v.node >= 0:
            item = p.nodes[v.node].child
            while item >= 0 and p.nodes[item].name != p.schema.inputs[at].name:
                item = p.nodes[item].next
            if item >= 0:
                continue  # given, or a variable that fell back to the default above
        elif p.schema.strings[p.schema.inputs[at].name] in <dict><object>v.object:
            continue
        cost = cost_add(cost, input_cost(p, missing(), at, depth))
    return cost

cdef cost_t input_cost(Program p, Value v, int32_t input, int32_t depth) except *:
    """ibm: an argument or input field pays its weight once when it is there, null included, and what is inside of it."""
    cdef InputInfo *i = &p.schema.inputs[input]
    v = effective(p, v, i)
    if v.node < 0 and v.object == NULL:
        return <cost_t>0
    return cost_add(<cost_t>i.weight, inside(p, v, i.ref.type, depth + 1))

cdef cost_t router_cost(Program p, Value v, int32_t input, int32_t depth) except *:
    """router: every object sent pays its weight, or 1; every list its weight, and its items each; null nothing."""
    cdef InputInfo *i = &p.schema.inputs[input]
    cdef cost_t cost = <cost_t>i.router_weight
    cdef int32_t item, at
    cdef bint is_object = i.ref.type >= 0 and p.schema.types[i.ref.type].kind == INPUT_OBJECT
    if depth > 2 * MAX_VALUE_DEPTH:
        return cost
    if v.node >= 0:
        if p.nodes[v.node].kind == NULL_VALUE:
            return <cost_t>0
        if p.nodes[v.node].kind == LIST:
            item = p.nodes[v.node].child
            while item >= 0:
                cost = cost_add(cost, router_cost(p, resolved(p, item), input, depth + 1))
                item = p.nodes[item].next
        elif p.nodes[v.node].kind == OBJECT and is_object:
            cost = cost if i.router_weighted else UNIT
            item = p.nodes[v.node].child
            while item >= 0:
                at = p.schema.input_of(i.ref.type, p.nodes[item].name)
                if at >= 0:
                    cost = cost_add(cost, router_cost(p, resolved(p, p.nodes[item].child), at, depth + 1))
                item = p.nodes[item].next
        return cost
    if v.object == NULL or <object>v.object is None:
        return <cost_t>0
    if isinstance(<object>v.object, (list, tuple)):
        for one in <object>v.object:
            cost = cost_add(cost, router_cost(p, of_object(<PyObject *>one), input, depth + 1))
    elif is_object and isinstance(<object>v.object, dict):
        cost = cost if i.router_weighted else UNIT
        by_name = <dict>p.schema.input_types[i.ref.type]
        for key, one in (<dict><object>v.object).items():
            at = by_name.get(key, -1)
            if at >= 0:
                cost = cost_add(cost, router_cost(p, of_object(<PyObject *>one), at, depth + 1))
    return cost

cdef cost_t call_cost(Program p, const FieldInfo *f, int32_t node) except *:
    """What calling the field costs by itself: its arguments, and in `ibm` its own weight and its directives; never below 0."""
    cdef cost_t cost = <cost_t>0
    cdef int32_t i, d, a
    cdef Value v
    if p.dialect == IBM:
        cost = <cost_t>f.weight
    for i in range(f.first_arg, f.first_arg + f.n_args):
        if p.schema.inputs[i].costly:
            v = argument_value(p, node, p.schema.inputs[i].name)
            cost = cost_add(cost, input_cost(p, v, i, 0) if p.dialect == IBM else router_cost(p, v, i, 0))
    if p.dialect == IBM:
        d = p.nodes[node].dirs
        while d >= 0:
            a = p.schema.directive_of(p.nodes[d].name)
            if a >= 0 and p.schema.directives[a].costly:
                for i in range(p.schema.directives[a].first_arg,
                               p.schema.directives[a].first_arg + p.schema.directives[a].n_args):
                    if p.schema.inputs[i].costly:
                        cost = cost_add(cost, input_cost(p, argument_value(p, d, p.schema.inputs[i].name), i, 0))
            d = p.nodes[d].next
    return cost_max(cost, <cost_t>0)
