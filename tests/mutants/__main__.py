"""`python -m tests.mutants [NAME ...]`: breaks the code on purpose and demands that the tests notice.

Each `NAME.patch` in this folder breaks one law. Its first lines say how the tests must react:

    law: 2
    tests: tests/laws -k law_2
    ...the patch

A patch is applied to a copy of the tree; the compiled modules are built again where it touches ext/. The named tests
must then fail by an assertion of theirs: a mutant that survives, or that breaks the build or the collection, fails the
run. Before any of it the same tests must pass on the unbroken copy.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COPIED = ["docs", "ext", "shield", "tests", "bench", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
TESTS_FAILED = 1  # pytest's exit status when tests ran and some failed


class Mutant(NamedTuple):
    """One patch and the tests that must catch it."""

    name: str
    law: str
    tests: list[str]
    patch: str


def read(path: Path) -> Mutant:
    law, tests, patch = path.read_text().split("\n", 2)
    assert law.startswith("law: "), f"{path.name}: the first line is 'law: N'"
    assert tests.startswith("tests: "), f"{path.name}: the second line is 'tests: PYTEST ARGUMENTS'"
    return Mutant(path.stem, law[5:], shlex.split(tests[7:]), patch)


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    # The copy must not fall back to the tree it was copied from.
    env = {**os.environ, "PYTHONPATH": str(cwd), "SHIELD_DEBUG": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def build(tree: Path) -> None:
    done = run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], tree)
    if done.returncode:
        sys.exit(f"the build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def pytest(tree: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests], tree)


def caught(mutant: Mutant, tree: Path) -> str:
    """Empty when the mutant was caught, else what went wrong."""
    before = pytest(tree, mutant.tests)
    if before.returncode:
        return f"its tests fail without it:\n{before.stdout[-2000:]}"
    applied = subprocess.run(
        ["patch", "-p1", "--no-backup-if-mismatch"], cwd=tree, input=mutant.patch, capture_output=True, text=True
    )
    if applied.returncode:
        return f"the patch does not apply:\n{applied.stdout}"
    compiled = {path: path.read_bytes() for path in tree.glob("shield/core/*.so")}
    try:
        if "+++ b/ext/" in mutant.patch:
            build(tree)
        after = pytest(tree, mutant.tests)
    finally:
        subprocess.run(["patch", "-R", "-p1"], cwd=tree, input=mutant.patch, capture_output=True, text=True)
        for path, binary in compiled.items():
            path.unlink()  # never overwrite a library in place
            path.write_bytes(binary)
    if after.returncode == TESTS_FAILED:
        return ""
    return "it survived" if after.returncode == 0 else f"pytest ended with {after.returncode}:\n{after.stdout[-2000:]}"


def main(names: list[str]) -> int:
    mutants = [read(path) for path in sorted(HERE.glob("*.patch")) if not names or path.stem in names]
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(source, tree / name)
        build(tree)
        for mutant in mutants:
            problem = caught(mutant, tree)
            failures += bool(problem)
            verdict = f"NOT CAUGHT: {problem}" if problem else "caught"
            print(f"law {mutant.law:<3} {mutant.name:<40} {verdict}", flush=True)
    print(f"{len(mutants) - failures} passed, {failures} failed")
    return 1 if failures or not mutants else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
