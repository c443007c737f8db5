"""Processes of this package's own: the same from a clone (`bench`) and from an installation (`shield.bench`).

A child finds this package by its folder and Shield by PYTHONPATH, never by the folder it is started in, so that one
benchmark can drive the Shield of another checkout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

_BOOT = """
import importlib, importlib.util, runpy, sys
name, folder, module = sys.argv[1:4]
if "." in name:
    importlib.import_module(name.rpartition(".")[0])
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
sys.argv = [module, *sys.argv[4:]]
runpy.run_module(name + "." + module, run_name="__main__", alter_sys=False)
"""


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs one module of this package, say `peers.web_application`."""
    return [sys.executable, "-P", "-c", _BOOT, __package__ or "bench", str(HERE), module, *arguments]


def shield_of(tree: Path | None = None) -> dict[str, str]:
    """The environment in which a child imports Shield from this checkout; None: from where this process has it."""
    import shield

    folder = Path(shield.__file__).resolve().parent.parent if tree is None else tree
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
