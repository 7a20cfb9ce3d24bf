"""No key of a recipe is ignored: each one is read somewhere in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import fewstep
from fewstep import config

SOURCE = Path(fewstep.__file__).parent


def test_every_key_is_read():
    read: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.name != "config.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    sections = [each for each in vars(config).values() if isinstance(each, type)]
    for section in sections:
        if issubclass(section, config.Section):
            unread = set(section.model_fields) - read - {"name"}  # a name is what a union looks at
            assert not unread, f"{section.__name__}: nobody reads {sorted(unread)}"
