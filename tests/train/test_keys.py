"""No key of a recipe is ignored: each one is read somewhere in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fewstep
from fewstep.config import Recipe
from fewstep.config.strict import Section

SOURCE = Path(fewstep.__file__).parent


def kinds(section: type[Section]) -> Iterator[type[Section]]:
    for kind in section.__subclasses__():
        yield kind
        yield from kinds(kind)


def properties(tree: ast.AST) -> list[ast.FunctionDef]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(ast.unparse(d) == "property" for d in f.decorator_list)]


def test_every_key_is_read():
    read: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # Of the configuration's own code, properties pass on what they read.
        for part in properties(tree) if path.parent.name == "config" else [tree]:
            read |= {node.attr for node in ast.walk(part) if isinstance(node, ast.Attribute)}
    sections = set(kinds(Section))
    assert Recipe in sections
    unread = {
        f"{section.__name__}.{key}"
        for section in sections
        for key in set(section.model_fields) - read - {"name"}  # a name is what a union looks at
    }
    assert not unread, f"nobody reads {sorted(unread)}"
