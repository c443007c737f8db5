#!/usr/bin/env bash
# Compiles the generated C for arm64, to see that it compiles there: needs aarch64-linux-gnu-gcc (Debian: gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross). Python's own headers are those of this machine, which has the same sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
for source in build/cython/ext/*.c; do
  aarch64-linux-gnu-gcc -c -O2 -fPIC -w -I"$include" "$source" -o "$objects/$(basename "$source" .c).o"
done
# A word is read and swapped by exclusive pairs, and every swap has its barrier.
aarch64-linux-gnu-objdump -d "$objects/engine.o" >"$objects/engine.s"
grep -q ldaxp "$objects/engine.s"
grep -q 'dmb.*ish' "$objects/engine.s"
! grep -q '__atomic_\|__sync_' "$objects/engine.s"
echo "compiled $(ls "$objects"/*.o | wc -l) modules for arm64"
