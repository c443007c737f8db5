"""What the README shows of a gateway's configuration is the text that these tests run."""

from __future__ import annotations

import re
import tomllib
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from shield import Policy
from tests.gateway_processes import SNIPPETS, region
from tests.gateways.snippets import README, filled, shown

_FENCED = re.compile(r"^```[a-z]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_readme_shows_the_tested_snippets() -> None:
    if not README.exists():
        pytest.skip("README.md is not written yet")
    page = README.read_text()
    blocks = list(shown(page))
    for file, tested, text in blocks:
        assert text == tested, f"not as in {file}; to write it: python -m tests.gateways.snippets"
    assert {file for file, _, _ in blocks} >= {"docs/gateways/envoy.yaml", "docs/gateways/nginx.conf"}
    # A configuration that nobody compares would go stale.
    marked = {text for _, _, text in blocks}
    for block in _FENCED.finditer(page):
        if re.search(r"ext_authz|auth_request", block["text"]):
            assert block["text"] in marked, "README.md has a gateway's configuration without a snippet mark before it"


def test_how_a_page_shows_a_snippet() -> None:
    whole = (SNIPPETS / "envoy.yaml").read_text()
    filters = region(whole, "filters")
    assert filters.startswith("# Facts that")
    assert "- name: envoy.filters.http.ext_authz\n" in filters
    page = (
        "text\n<!-- snippet: docs/gateways/envoy.yaml -->\n```yaml\n```\nmore\n"
        "<!-- snippet: docs/gateways/envoy.yaml#filters -->\n\n```yaml\nstale: true\n```\nend\n"
    )
    assert [text for _, _, text in shown(page)] == ["", "stale: true\n"]
    file = "docs/gateways/envoy.yaml"
    assert list(shown(filled(page))) == [(file, whole, whole), (file, filters, filters)]
    assert filled(page) == page.replace("yaml\n```\nmore", f"yaml\n{whole}```\nmore").replace("stale: true\n", filters)
    with pytest.raises(LookupError):
        region(whole, "filter")


@pytest.mark.parametrize("file", sorted(SNIPPETS.iterdir()), ids=lambda file: file.name)
def test_the_policy_lines_of_a_snippet_are_valid(file: Path) -> None:
    head = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    lines = list(dropwhile(lambda line: line != "[identity]", (line.removeprefix("#").strip() for line in head)))
    end = lines.index("") if "" in lines else len(lines)
    table = "\n".join(lines[:end])
    assert tomllib.loads(table)["identity"]["headers"]["tenant"] == "X-Tenant"
    limit = '[[limit]]\nname = "a"\nkey = ["tenant"]\nrate = "1/s"\n'
    assert Policy.parse(f"{limit}{table}\n").identity.headers["tenant"] == "X-Tenant"
