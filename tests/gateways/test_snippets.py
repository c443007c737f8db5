"""What the README shows of a gateway's configuration is the text that these tests run.

In README.md a line `<!-- snippet: docs/gateways/envoy.yaml -->` stands right before a fenced block that is
the whole file, `<!-- snippet: docs/gateways/envoy.yaml#filters -->` before one that is the lines between
`# [filters]` and `# [/filters]`, moved to the left margin.
"""

from __future__ import annotations

import re
import tomllib
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from shield import Policy
from tests.gateway_processes import ROOT, SNIPPETS, region

_MARKED = re.compile(
    r"^<!-- snippet: (?P<file>[^\s#]+)(?:#(?P<region>\S+))? -->\n+```[a-z]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FENCED = re.compile(r"^```[a-z]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def shown(markdown: str) -> list[tuple[str, str, str]]:
    """(file, what the file has there, what the page shows) of every marked block."""
    found = []
    for block in _MARKED.finditer(markdown):
        text = (ROOT / block["file"]).read_text()
        if block["region"]:
            text = region(text, block["region"])
        found.append((block["file"], text, block["text"]))
    return found


def test_the_readme_shows_the_tested_snippets() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not written yet")
    blocks = shown(readme.read_text())
    for file, tested, text in blocks:
        assert text == tested, f"README.md shows another {file} than the one that is tested"
    assert {file for file, _, _ in blocks} >= {"docs/gateways/envoy.yaml", "docs/gateways/nginx.conf"}
    # A block about a gateway that nobody compares would go stale.
    marked = {text for _, _, text in blocks}
    for block in _FENCED.finditer(readme.read_text()):
        if re.search(r"ext_authz|auth_request", block["text"]):
            assert block["text"] in marked, (
                "README.md has a gateway's configuration without a snippet mark before it"
            )


def test_how_a_page_shows_a_snippet() -> None:
    whole = (SNIPPETS / "envoy.yaml").read_text()
    filters = region(whole, "filters")
    assert filters.startswith("# Facts that")
    assert "- name: envoy.filters.http.ext_authz\n" in filters
    page = (
        f"text\n<!-- snippet: docs/gateways/envoy.yaml -->\n```yaml\n{whole}```\n"
        f"<!-- snippet: docs/gateways/envoy.yaml#filters -->\n\n```yaml\n{filters}```\n"
    )
    assert shown(page) == [("docs/gateways/envoy.yaml", text, text) for text in (whole, filters)]
    with pytest.raises(LookupError):
        region(whole, "filter")


@pytest.mark.parametrize("file", sorted(SNIPPETS.iterdir()), ids=lambda file: file.name)
def test_the_policy_lines_of_a_snippet_are_valid(file: Path) -> None:
    head = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    lines = list(
        dropwhile(lambda line: line != "[identity]", (line.removeprefix("#").strip() for line in head))
    )
    end = lines.index("") if "" in lines else len(lines)
    table = "\n".join(lines[:end])
    assert tomllib.loads(table)["identity"]["headers"]["tenant"] == "X-Tenant"
    limit = '[[limit]]\nname = "a"\nkey = ["tenant"]\nrate = "1/s"\n'
    assert Policy.parse(f"{limit}{table}\n").identity.headers["tenant"] == "X-Tenant"
