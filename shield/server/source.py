"""Where the policy in force comes from, and how it was written."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from shield.errors import PolicyError, PolicyIssue
from shield.policy import Policy

STARTER = "starter.toml"
_SUFFIXES = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


Written = tuple[str, str, str | None, str | None]
"""Text, format, path and directory of a policy, as they are sent to another process."""


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy as it was written, and where."""

    text: str
    format: str
    path: Path | None = None
    """Where to read it again; None for the starter policy and for what came over HTTP."""
    directory: str | None = None
    """Where files that it names start; None: where the process runs."""

    @classmethod
    def of(cls, written: Written) -> PolicySource:
        """What another process sent."""
        text, format, path, directory = written
        return cls(text, format, Path(path) if path is not None else None, directory)

    def written(self) -> Written:
        """The same, for another process: whoever gets it reads it for itself."""
        return self.text, self.format, str(self.path) if self.path is not None else None, self.directory

    @classmethod
    def starter(cls) -> PolicySource:
        """The packaged policy of a server that was given none."""
        return cls(files("shield").joinpath(STARTER).read_text("utf-8"), "toml")

    @classmethod
    def read(cls, path: Path) -> tuple[PolicySource, Policy]:
        """A policy file and what it says. PolicyError, also when it cannot be read."""
        policy = Policy.load(path)
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError([PolicyIssue("", f"cannot be read: {error}")], str(path)) from None
        return cls(text, _SUFFIXES[path.suffix.lower()], path, str(path.absolute().parent)), policy

    def parse(self) -> Policy:
        """PolicyError with everything that is wrong."""
        return Policy.parse(self.text, self.format, str(self.path) if self.path else None, self.directory)

    def document(self) -> Any:
        """The same as JSON would hold it: what may be sent back to replace it."""
        if self.format == "json":
            return json.loads(self.text)
        if self.format == "toml":
            return tomllib.loads(self.text)
        from shield.policy import yaml_reader
        from shield.policy.validate import MAX_DEPTH

        return yaml_reader.read(self.text, MAX_DEPTH)
