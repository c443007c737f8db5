"""The tables beside this file, as cases."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from shield.graphql import Schema

VECTORS = Path(__file__).parent / "vectors"


@cache
def tables(name: str) -> dict[str, Any]:
    return tomllib.loads((VECTORS / f"{name}.toml").read_text())


def cases(name: str) -> list[dict[str, Any]]:
    found = tables(name)["case"]
    for case in found:
        if isinstance(case.get("variables"), str):
            case["variables"] = json.loads(case["variables"])
    return found


@cache
def schema(name: str, of: str) -> Schema:
    return Schema.parse(tables(name)["schemas"][of])
