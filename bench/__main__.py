"""`python -m bench [NAME ...]`: what `shield bench` is once installed."""

from __future__ import annotations

import sys

from shield.cli import main

from . import command

assert command  # `shield bench` takes the one that is loaded

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
