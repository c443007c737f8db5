"""Builds every ext/NAME.pyx into the extension module shield.core.NAME; all else is in pyproject.toml.

SHIELD_DEBUG=1     -O0 with bounds checks and C assertions.
SHIELD_SANITIZE=1  address and undefined-behaviour sanitizers (run Python with libasan preloaded).

CPython's own flags define signed overflow away (-fwrapv), which would blind UBSan to it; the sanitizer build
takes that back with -fno-wrapv -fstrict-overflow.

Joining neighbouring stores and loads into 16-byte ones is off: hashes and cells are written in halves and read at
once, and a load that spans two stores waits until both have left the processor.
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

DEBUG = os.environ.get("SHIELD_DEBUG") == "1"
SANITIZE = os.environ.get("SHIELD_SANITIZE") == "1"

compile_args = ["-O0", "-g", "-UNDEBUG"] if DEBUG or SANITIZE else ["-O3", "-g0", "-fno-tree-slp-vectorize"]
link_args: list[str] = []
if SANITIZE:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args += ["-O1", *flags, "-fno-wrapv", "-fstrict-overflow"]
    link_args += flags

headers = sorted(str(path) for path in Path("ext").glob("*.px[di]"))
extensions = [
    # `depends` rebuilds on a header edit, and is what puts ext/ into the source distribution.
    Extension(
        f"shield.core.{path.stem}",
        [str(path)],
        depends=[str(path), *headers],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(Path("ext").glob("*.pyx"))
]

setup(
    # bench/ is the clone's own folder and `shield bench` of an installation: it imports itself by relative names.
    packages=[
        *find_packages(include=["shield", "shield.*"]),
        "shield.bench",
        *(f"shield.bench.{name}" for name in find_packages("bench")),
    ],
    package_dir={"shield.bench": "bench"},
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG or SANITIZE,
            "wraparound": False,
            "cdivision": True,
            # Plain C methods, which Python calls directly. Signatures for `inspect` and stubtest are in the docstrings.
            "binding": False,
            "embedsignature": True,
            "embedsignature.format": "clinic",
        },
    ),
)
