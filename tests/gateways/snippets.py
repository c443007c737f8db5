"""Fills the marked blocks of README.md with the gateway configurations that the tests run.

A line `<!-- snippet: docs/gateways/envoy.yaml -->` stands right before a fenced block that is the whole file,
`<!-- snippet: docs/gateways/envoy.yaml#filters -->` before one that is the lines between `# [filters]` and
`# [/filters]`, moved to the left margin. To write them: python -m tests.gateways.snippets
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.gateway_processes import ROOT, region

README = ROOT / "README.md"

_MARKED = re.compile(
    r"^(?P<head><!-- snippet: (?P<file>[^\s#]+)(?:#(?P<region>\S+))? -->\n+```[a-z]*\n)"
    r"(?P<text>.*?)(?=^```$)",
    re.MULTILINE | re.DOTALL,
)


def shown(markdown: str) -> Iterator[tuple[str, str, str]]:
    """(file, what the file has there, what the page shows) of every marked block."""
    for block in _MARKED.finditer(markdown):
        yield block["file"], _tested(block), block["text"]


def filled(markdown: str) -> str:
    """The page with every marked block as its file has it."""
    return _MARKED.sub(lambda block: block["head"] + _tested(block), markdown)


def _tested(block: re.Match[str]) -> str:
    text = (ROOT / block["file"]).read_text()
    return region(text, block["region"]) if block["region"] else text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
