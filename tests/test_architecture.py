"""The shape of the house: imports point inwards, inner layers keep their hands off the world, files keep their size."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "shield"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

# Innermost first. A module may import from its own layer and from those before it.
LAYERS = [
    ("core", ["shield.core"]),
    (
        "values",
        [
            *("shield.errors", "shield.rate", "shield.clock", "shield.request", "shield.decision", "shield.receipt"),
            "shield.answer",
        ],
    ),
    ("policy", ["shield.policy", "shield.guard", "shield.graphql", "shield.detect"]),
    ("identity", ["shield.identity"]),
    ("stores", ["shield.store"]),
    ("blocks", ["shield.block"]),
    (
        "facade",
        [
            *(
                "shield.abuse",
                "shield.screen",
                "shield.sequel",
                "shield.keyed",
                "shield.standing_in",
                "shield.resolving",
            ),
            *("shield.shield", "shield.testing", "shield", "shield.sharing"),
        ],
    ),
    (
        "edges",
        [
            *("shield.server", "shield.simulate", "shield.geo", "shield.middleware", "shield.client"),
            *(
                "shield.cli",
                "shield.cli_bench",
                "shield.cli_block",
                "shield.cli_options",
                "shield.cli_override",
                "shield.cli_price",
                "shield.__main__",
            ),
        ],
    ),
]
INNER = {"core", "values", "policy"}
# The world outside: the clock, the network, the log. Reading a policy file is the loader's job and nobody else's.
WORLDLY = {"time", "asyncio", "socket", "random", "logging", "redis", "aiohttp", "structlog", "uvloop"}


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    best, found = -1, 0
    for index, (_, prefixes) in enumerate(LAYERS):
        for prefix in prefixes:
            if (module == prefix or module.startswith(prefix + ".")) and len(prefix) > found:
                best, found = index, len(prefix)
    return best


def imports_of(path: Path) -> list[str]:
    """Every module that is imported at run time, wherever the statement stands; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.append(node.module)
            if node.module == "shield":
                found += [f"shield.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_inwards(path):
    module = name_of(path)
    if module == "shield":
        return  # the package's front door shows everything that is public
    layer = layer_of(module)
    assert layer >= 0, f"{module} belongs to no layer: add it to LAYERS"
    for imported in imports_of(path):
        if imported.startswith("shield.") and (PACKAGE.parent / (imported.replace(".", "/") + ".py")).exists():
            assert layer_of(imported) <= layer, f"{module} imports {imported}, which lies further out"
        if LAYERS[layer][0] in INNER:
            assert imported.split(".")[0] not in WORLDLY, (
                f"{module} imports {imported}: time and I/O are arguments here"
            )


def test_compiled_modules_import_only_values_and_each_other():
    values = ["shield.core.status", "shield.core.bucket", "shield.core.path_cost", "shield.rate"]
    allowed = {*values, *(f"shield.core.{path.stem}" for path in ROOT.glob("ext/*.pyx"))}
    for path in [*ROOT.glob("ext/*.pyx"), *ROOT.glob("ext/*.pxi")]:
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("from", "import"):
                module = words[1]
                if module.startswith("shield."):
                    assert module in allowed, f"{path.name}: {line}"
                assert module.split(".")[0] not in WORLDLY, f"{path.name}: {line}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_a_giant_or_a_drawer(path):
    assert len(path.read_text().splitlines()) <= 400, "two ideas live here"
    assert not {"utils", "util", "helpers", "helper", "manager", "common", "misc"} & set(path.stem.split("_"))


def test_every_module_imports_alone():
    """Each in its own interpreter state: no module relies on another having been imported before."""
    names = [name_of(path) for path in MODULES if path.stem != "__main__"]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [m for m in sys.modules if m == 'shield' or m.startswith('shield.')]:\n"
        "        if not loaded.startswith('shield.core'):\n"
        "            del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, *names], check=True, cwd=ROOT)


def test_benchmarks_import_themselves_by_relative_names():
    """They are `bench` in a clone and `shield.bench` once installed, where there are no tests."""
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for imported in imports_of(path):
            assert imported.split(".")[0] not in ("bench", "tests"), f"{path.name}: write `from .module import ...`"


def test_the_library_does_not_import_the_edges():
    """A user who imports Shield pays neither for the server nor for Redis."""
    code = (
        "import sys, shield\n"
        "heavy = {'aiohttp', 'redis', 'graphql', 'prometheus_client', 'structlog', 'uvloop', 'yaml'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_server_needs_no_extra():
    """What `pip install shield-limiter` brings is enough to serve a policy that asks for no more."""
    code = (
        "import sys\n"
        "for extra in ('jwt', 'cryptography', 'graphql', 'yaml', 'maxminddb', 'hdrh', 'rich', 'limits'):\n"
        "    sys.modules[extra] = None\n"
        "import shield.cli, shield.server.lifecycle, shield.server.worker_process, shield.server.node\n"
        "from shield.server.source import PolicySource\n"
        "shield.Shield(PolicySource.starter().parse()).check_nowait(shield.Request(ip='203.0.113.7'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_missing_binaries_say_how_to_build_them(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "shield", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run([sys.executable, "-c", "import shield"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: Shield's compiled modules are missing")
    assert "python setup.py build_ext --inplace" in last
