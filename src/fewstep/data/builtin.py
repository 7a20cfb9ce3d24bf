"""Prompts that come with the project: made from a grammar, the same ones everywhere, CC0.

They are for a start without a list of one's own; prompts like those that will be drawn are better.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from fewstep.config.data import BUILTIN
from fewstep.utils import yaml
from fewstep.utils.errors import unknown

LISTS = {"general": slice(0, 4096), "general-heldout": slice(4096, 4096 + 512)}
"""Name -> which of the grammar's distinct prompts; no prompt is in both."""
_RULE = re.compile(r"\{(\w+)\}")
_FILE = files("fewstep.data") / "builtin.yaml"


def builtin_prompts(source: str) -> list[str]:
    """The prompts of a source such as ``builtin:general``.

    Raises:
        FewstepError: There is no such list.
    """
    name = source.removeprefix(BUILTIN)
    if name not in LISTS:
        raise unknown("built-in list of prompts", name, LISTS)
    part = LISTS[name]
    return list(itertools.islice(_distinct(), part.start, part.stop))


def _distinct() -> Iterator[str]:
    """The grammar's prompts, each once."""
    seen = set()
    for number in itertools.count():
        prompt = _expanded("{prompt}", f"{number}")
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def _expanded(text: str, place: str) -> str:
    """A text with its rules replaced; which of a rule's texts is a function of the place alone."""
    turn = itertools.count()

    def chosen(rule: re.Match[str]) -> str:
        inner = f"{place}/{next(turn)}"
        digest = hashlib.blake2b(inner.encode(), digest_size=8).digest()
        options = _grammar()[rule[1]]
        return _expanded(str(options[int.from_bytes(digest, "little") % len(options)]), inner)

    return _RULE.sub(chosen, text)


@cache
def _grammar() -> dict[str, Any]:
    content: dict[str, Any] = yaml.load(_FILE.read_text(encoding="utf-8"))
    return content
