"""Files that a policy names."""

from __future__ import annotations

from pathlib import Path


def path_of(text: str, directory: str | None) -> Path:
    """The path that "file:NAME" means: relative to `directory`, or to where the process runs."""
    return Path(directory or ".") / text.removeprefix("file:")
