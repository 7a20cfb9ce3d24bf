"""The equations that docstrings cite exist, and the documented objective is one."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from fewstep.objectives import Objective, available, settings_model

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


def test_the_documented_objective_is_one(tmp_path, monkeypatch):
    text = (ROOT / "docs/add-an-objective.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "guidance_between.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("guidance_between", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    objective = module.GuidanceBetween()
    assert isinstance(objective, Objective)
    assert objective.alpha == 3.0
