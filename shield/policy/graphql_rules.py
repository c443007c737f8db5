"""The rules of [guard.graphql] that span several keys, and the files that it names."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from shield.graphql.ceilings import Ceilings
from shield.graphql.errors import SchemaError
from shield.graphql.pricer import MAX_PERSISTED
from shield.policy.graphql_schema import UNBOUNDED
from shield.policy.model import GraphQLGuard, Limit
from shield.policy.report import REFUSED, Report

if TYPE_CHECKING:
    from shield.graphql.schema import Schema

PATH: Final = "guard.graphql"
# GitHub's public schema has 1.5 MB; parsing takes about a second a megabyte, once.
MAX_SCHEMA_BYTES: Final = 8 * 1_048_576
MAX_PERSISTED_BYTES: Final = 64 * 1_048_576
MAX_HASH_CHARS: Final = 256
# A reload usually names the schema it had. Old ones are kept for going back and for several policies in one process.
MAX_SCHEMAS: Final = 4

_schemas: OrderedDict[str, Schema] = OrderedDict()

Read = Callable[[str, int], str]
"""(name, most bytes) -> the file's text. ValueError says why it cannot be read."""


def graphql_of(values: Any, limits: tuple[Limit, ...], report: Report, read: Read) -> GraphQLGuard | None:
    """The model of [guard.graphql]; where a limit is charged a GraphQL cost without one, that of its defaults."""
    if values is REFUSED:
        return None
    if values is None:
        wanted = any(isinstance(limit.cost, str) and limit.cost.startswith("graphql") for limit in limits)
        guard = GraphQLGuard() if wanted else None
    else:
        guard = _guard(values, report, read)
    if guard is not None and guard.dialect != "ibm":
        for at, limit in enumerate(limits):
            if limit.cost == "graphql:type":
                report.wrong(f"limit[{at}].cost", limit.cost, f'"graphql", because {guard.dialect} has one figure')
    return guard


def _guard(values: Mapping[str, Any], report: Report, read: Read) -> GraphQLGuard | None:
    dialect = values["dialect"]
    if values["schema"] is None and dialect in ("ibm", "router"):
        report.add(f"{PATH}.schema", f'missing; allowed: a file, because of dialect = "{dialect}"')
    if values["schema"] not in (None, REFUSED) and dialect == "shape":
        report.wrong(f"{PATH}.dialect", dialect, '"ibm" or "router", because there is a schema')
    if dialect is None:
        dialect = "shape" if values["schema"] is None else "ibm"
    if values["max_type_cost"] is not None and dialect != "ibm":
        report.add(f"{PATH}.max_type_cost", f'found with dialect = "{dialect}"; allowed: only with "ibm"')
    schema, digest = _schema(values["schema"], report, read)
    persisted = _persisted(values["persisted"], report, read)
    match = values["match"] if values["match"] is not None else {"method": None, "path": None}
    if match is REFUSED or persisted is None or any(value is REFUSED for value in values.values()):
        return None
    size = values["default_list_size"]
    return GraphQLGuard(
        dialect=dialect,
        default_list_size=None if size == UNBOUNDED else size,
        unknown=values["unknown"],
        mode=values["mode"],
        ceilings=Ceilings(**{one.name: values[one.name] for one in fields(Ceilings)}),
        reads_http=values["match"] is not None,
        methods=match["method"] or (),
        paths=match["path"] or (),
        schema_digest=digest,
        persisted_digest=_digest(json.dumps(dict(persisted), sort_keys=True)) if persisted else None,
        schema=schema,
        persisted=persisted,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _schema(name: Any, report: Report, read: Read) -> tuple[Schema | None, str | None]:
    if name is None or name is REFUSED:
        return None, None
    at = f"{PATH}.schema"
    try:
        text = read(name, MAX_SCHEMA_BYTES)
    except ValueError as error:
        report.wrong(at, name, "a file with a schema in SDL", str(error))
        return None, None
    digest = _digest(text)
    schema = _schemas.get(digest)
    if schema is None:
        try:
            from shield.graphql.schema import Schema
        except ImportError:
            report.add(at, "graphql-core is not installed; install it with: pip install 'shield-limiter[graphql]'")
            return None, None
        try:
            schema = Schema.parse(text)
        except SchemaError as error:
            for issue in error.issues:
                report.add(at, f"{name}:{issue}")
            return None, None
        _schemas[digest] = schema
        while len(_schemas) > MAX_SCHEMAS:
            _schemas.popitem(last=False)
    _schemas.move_to_end(digest)
    return schema, digest


def _persisted(name: Any, report: Report, read: Read) -> Mapping[str, str] | None:
    """Documents by their hash, or None when they are wrong, which has been reported."""
    if name is None or name is REFUSED:
        return MappingProxyType({})
    at = f"{PATH}.persisted"
    allowed = "a file with a JSON object of documents by their hash"
    try:
        documents = json.loads(read(name, MAX_PERSISTED_BYTES))
    except RecursionError:
        report.wrong(at, name, allowed, "it is nested too deeply")
        return None
    except ValueError as error:
        report.wrong(at, name, allowed, f"{error}"[:200])
        return None
    if not isinstance(documents, dict) or len(documents) > MAX_PERSISTED:
        report.wrong(at, name, f"{allowed}, at most {MAX_PERSISTED:,}")
        return None
    for key, document in documents.items():
        if not isinstance(document, str) or not document or not 0 < len(key) <= MAX_HASH_CHARS:
            report.wrong(f"{at}.{key[:64]}", document, f"a document under a hash of 1 to {MAX_HASH_CHARS} characters")
            return None
    return MappingProxyType(documents)
