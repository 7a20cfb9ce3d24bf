"""Every promise of docs/reliability.md names the tests that prove it, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises() -> list[str]:
    """The bullets of the chapter, each as one text."""
    [chapter] = re.findall(r"^## Promises\n(.*?)^## ", PAGE, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^- (.*?)(?=^- |^#|\Z)", chapter, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("promise", promises(), ids=lambda text: text[:40])
def test_a_promise_has_its_proof(promise):
    named = TEST.findall(promise)
    assert named, "no test is named"
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in there, f"{file} has no {name}"


def test_there_are_promises():
    assert len(promises()) >= 20
