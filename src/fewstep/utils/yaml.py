"""YAML as people expect it: ``1e-5`` is a number, ``on`` is a word, a key given twice is an error.

PyYAML follows YAML 1.1, where ``lr: 1e-5`` is a string, ``name: no`` is a boolean, ``012`` is ten
and the second of two equal keys wins silently. Tags that make Python objects are errors, and texts
that would take much memory or time: nested deeply, or written with aliases of aliases.

ruamel.yaml knows YAML 1.2, but reads ``1_000`` as a number, which YAML 1.2 does not, and has no
bounds either: it would need the same loader as here, and its own table of scalars.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml import YAMLError

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_text

__all__ = ["DEEPEST", "YAMLError", "dump", "front_matter", "lines", "load"]

DEEPEST = 32
"""Levels that mappings and lists may be nested."""
_MOST = 1_000_000
"""Values that a text may stand for, every alias written out."""


class _Rules:
    """Scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Loader(_Rules, yaml.SafeLoader):
    """Reads YAML 1.2 scalars; refuses duplicate keys, and texts without bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[str | None, int] = {}  # of what an anchor names, once it is complete

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Node that comes next, of a bounded depth and size."""
        event = self.peek_event()
        before = self._values
        self._depth += 1
        self._values += 1
        if isinstance(event, yaml.AliasEvent):
            self._values += self._sizes.get(event.anchor, _MOST)  # one that holds itself has no end
        if self._depth > DEEPEST or self._values > _MOST:
            what = "nested too deeply" if self._depth > DEEPEST else "stands for too many values"
            raise yaml.composer.ComposerError(None, None, what, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[event.anchor] = self._values - before
        return node

    def construct_yaml_int(self, node: Any) -> int:
        """Whole number: ``0o14`` is twelve, ``0x10`` sixteen, and ``012`` twelve as well."""
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Mapping of a node whose keys must differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


class _Dumper(_Rules, yaml.SafeDumper):
    """Quotes exactly the words that `_Loader` would not read as words."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out in full: no anchors in a file for people."""
        return True


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_SCALARS = (  # tag, pattern, first characters; the first pattern that fits wins
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", rf"{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
)
for _tag, _pattern, _first in _SCALARS:
    for _owner in (_Loader, _Dumper):
        _owner.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )


def load(text: str) -> Any:
    """Value that a YAML text stands for.

    Raises:
        yaml.YAMLError: The text is not YAML, gives a key twice, or has no bounds.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # What its constructors make of `!!int zebra` and the like.
        raise YAMLError(f"a value does not fit its tag: {error}") from error


def lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each key and each item of a list in a sound text, from 1, by its path."""
    found: dict[tuple[str, ...], int] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.SequenceNode):
            pairs = [(item, item) for item in pairs]
        for number, (key, inner) in enumerate(pairs):
            name = str(number if inner is key else key.value)
            found[*path, name] = key.start_mark.line + 1
            walk(inner, (*path, name))

    walk(yaml.compose(text, Loader=_Loader), ())
    return found


def dump(value: Any) -> str:
    """YAML text of a plain value, keys in their order; `load` gives the value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def front_matter(file: Path) -> dict[str, Any]:
    """The YAML header of a Markdown file, such as a model card; empty without a readable one."""
    try:
        header = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", read_text(file), re.DOTALL)
        content = load(header[1]) if header else {}
    except (FewstepError, YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
