#!/usr/bin/env bash
# Builds the compiled modules with the address and undefined-behaviour sanitizers in a copy of the tree, and runs the
# tests of the core, of its way through connections and of GraphQL prices under them, and GraphQL's fuzz target for a
# while. A finding ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r bench ext shield tests setup.py pyproject.toml README.md LICENSE "$copy"/
cd "$copy"
find . -name '*.so' -delete
SHIELD_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace >build.log 2>&1 || { tail -50 build.log; exit 1; }
# CPython never frees everything it allocates, so leaks are looked for by tests and not here.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PYTHONMALLOC=malloc
export PYTHONPATH="$copy"
"$python" -c 'import shield.core.engine as e; assert e.__file__.startswith("'"$copy"'"), e.__file__'
# Stepping through compiled code one instruction at a time is for the code that users run, not for ten times as much of it.
"$python" -m pytest -q -p no:cacheprovider tests/core tests/graphql tests/laws tests/server/test_plain_check.py tests/server/test_poller.py --ignore tests/laws/test_shared_interleavings.py -k "not valkey and not redis and not attacker and not small_stack"
"$python" tests/graphql/fuzz.py --without-atheris "${FUZZ_RUNS:-20000}" "${FUZZ_SEED:-1}"
