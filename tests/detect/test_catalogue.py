"""docs/detectors.md says what packaged.toml says."""

from __future__ import annotations

from pathlib import Path

from shield.detect.catalogue import render
from shield.policy.detector_rules import packaged

PAGE = Path(__file__).resolve().parents[2] / "docs" / "detectors.md"


def test_the_page_is_what_the_package_says() -> None:
    assert PAGE.read_text() == render(), "run `python -m shield.detect.catalogue > docs/detectors.md`"


def test_every_detector_is_on_it() -> None:
    text = render()
    for name, entry in packaged().items():
        assert f"| `{name}` | {', '.join((*entry['oat'], *entry.get('api', ())))} |" in text
        assert entry["note"] in text
