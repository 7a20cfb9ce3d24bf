"""Recipes in files: what one extends, and the line that a key is on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import eq
from pathlib import Path
from typing import Any

from fewstep.config import shipped
from fewstep.config.strict import ConfigError
from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_text
from fewstep.utils.resources import resolve
from fewstep.utils.terminal import one_line

RECIPE_BYTES = 4 * 2**20
"""Bound on a recipe's file; more prompts than fit belong in a file of their own."""
EXTENDS = "extends"
_KEY = re.compile(r"[\w-]+(?:\.[\w-]+)*")


@dataclass(frozen=True, eq=False)
class RecipeFile:
    """A recipe's file as it is written.

    Attributes:
        path: Where it is.
        values: Nested plain values, without what it extends.
        extends: What it extends, as it is written; None: nothing.
    """

    path: Path
    text: str
    values: dict[str, Any]
    extends: str | None

    @classmethod
    def read(cls, path: Path) -> RecipeFile:
        """The file at a path.

        Raises:
            ConfigError: It cannot be read, or is no mapping.
        """
        try:
            text = read_text(path, at_most=RECIPE_BYTES)
            values = yaml.load(text)
        except FewstepError as error:
            raise ConfigError(str(error)) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {one_line(str(error))}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a recipe is a mapping of sections, such as model and data")
        extends = values.pop(EXTENDS, None)
        file = cls(path, text, values, extends)
        if extends is not None and (not isinstance(extends, str) or not extends.strip()):
            raise file.error("must be a recipe's file, or the name of a shipped one")
        return file

    def error(self, what: str) -> ConfigError:
        """An error about what it extends."""
        return ConfigError(f"{EXTENDS}: {what}{self.at((EXTENDS,))}")

    def base(self) -> Path | None:
        """The file that it extends, which is looked for beside it and among the shipped ones.

        Raises:
            ConfigError: There is no such recipe.
        """
        if self.extends is None:
            return None
        try:
            near = self.path.parent / resolve(self.extends)
            return near if near.is_file() else shipped.find(self.extends)
        except (FewstepError, OSError, ValueError) as error:
            raise self.error(str(error)) from error

    @cached_property
    def lines(self) -> dict[tuple[str, ...], int]:
        """The line that each key is on, from 1."""
        return yaml.lines(self.text)

    def decides(self, key: Sequence[str]) -> bool:
        """Whether what files that it extends say of a dotted key plays no part."""
        node: Any = self.values
        for part in key:
            if not isinstance(node, dict):
                return True
            if part not in node:
                return False
            node = node[part]
        return True

    def depth(self, key: Sequence[str]) -> int:
        """How many parts of a dotted key the file holds, from the first on."""
        return max(n for n in range(len(key) + 1) if not n or tuple(key[:n]) in self.lines)

    def at(self, key: Sequence[str]) -> str:
        """Where a key is, or what would hold it, to be put after a message."""
        depth = self.depth(key)
        line = f", line {self.lines[tuple(key[:depth])]}" if depth else ""
        return f" ({self.path}{line})"


def read_files(path: str | Path) -> list[RecipeFile]:
    """A recipe's file, and the files that it extends, one after the other.

    Raises:
        ConfigError: One cannot be read, or a file extends itself in the end.
    """
    files = [RecipeFile.read(resolve(path))]
    while (base := files[-1].base()) is not None:
        if any(base.samefile(file.path) for file in files):
            raise files[-1].error(f"{base} extends this file itself; remove one of the two lines")
        files.append(RecipeFile.read(base))
    return files


def merged(files: Sequence[RecipeFile]) -> dict[str, Any]:
    """The values of a recipe's files together; those of earlier files win."""
    values: dict[str, Any] = {}
    for file in reversed(files):
        values = _over(values, file.values)
    return values


def located(error: FewstepError, files: Sequence[RecipeFile], set_: Iterable[str]) -> FewstepError:
    """The same error, each problem with the file and line that its key is on.

    Args:
        error: What is wrong, each problem beginning with a dotted key.
        files: The recipe's files.
        set_: Keys that were not taken from them.
    """
    elsewhere = [key.split(".") for key in set_]
    told = []
    for problem in error.problems:
        found = _KEY.match(str(problem))
        key = found[0].split(".") if found else []
        of_set = any(all(map(eq, key, each)) for each in elsewhere)  # it, or what it is part of
        if of_set or str(problem).startswith("override "):
            told.append(problem)
        else:
            where = _holder(files, key).at(key)
            told.append(ConfigError(f"{problem}{where}", code=problem.code))
    return ConfigError.of(told)


def _holder(files: Sequence[RecipeFile], key: Sequence[str]) -> RecipeFile:
    """The file that a key's value, or most of the way to it, was taken from."""
    last = next((n for n, file in enumerate(files) if file.decides(key)), len(files) - 1)
    return max(files[: last + 1], key=lambda file: file.depth(key))  # of equal ones the first


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Values over those of a base: key by key in mappings; all else is replaced whole.

    A mapping of another ``name`` is another thing, whose settings are not the base's.
    """
    found = dict(base)
    for key, value in own.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same = value.get("name", old.get("name")) == old.get("name")
            value = _over(old, value) if same else value
        found[key] = value
    return found
