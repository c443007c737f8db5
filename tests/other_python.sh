#!/usr/bin/env bash
# Installs Shield for another Python in a copy of the tree and runs the tests of the core and the laws there.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r bench docs ext shield tests setup.py pyproject.toml README.md LICENSE "$copy"/
cd "$copy"
find . -name '*.so' -delete
"$1" -m venv venv
venv/bin/python -m pip install --quiet --editable ".[test]"
venv/bin/python -m pytest -q -p no:cacheprovider tests/core tests/laws tests/policy
