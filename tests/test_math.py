"""The equations that docstrings cite exist."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.objectives import available, settings_model

ROOT = Path(__file__).resolve().parent.parent
TAGS = {int(tag) for tag in re.findall(r"\\tag\{(\d+)\}", (ROOT / "docs/math.md").read_text())}
CITATION = re.compile(r"\bEq\. (\d+)[a-c]?(?:(-| and |, )(\d+)[a-c]?)?")


def cited(text: str) -> set[int]:
    """All equation numbers in a text, ranges included."""
    found: set[int] = set()
    for first, joint, last in CITATION.findall(text):
        found |= {int(first), int(last or first)}
        if joint == "-":
            found |= set(range(int(first), int(last)))
    return found


def test_equations_are_numbered_without_gaps():
    assert set(range(1, len(TAGS) + 1)) == TAGS


def test_cited_equations_exist():
    gone = {
        f"{path.relative_to(ROOT)}: Eq. {number}"
        for path in (ROOT / "src").rglob("*.py")
        for number in cited(path.read_text(encoding="utf-8")) - TAGS
    }
    assert not gone, "\n".join(sorted(gone))


def test_every_objective_cites_its_equation():
    silent = [name for name in available() if not cited(settings_model(name).__doc__)]
    assert not silent, f"no equation in the docstring of {silent}"
