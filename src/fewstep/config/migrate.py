"""Keys and values that recipes once had: what replaces them, and how saved recipes are read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.config.strict import ConfigError
from fewstep.utils.resources import current_address

_ANY = object()


@dataclass(frozen=True)
class OldKey:
    """A setting that is gone, or has another name.

    Attributes:
        key: Its dotted key; ``*`` stands for every item of a list.
        instead: What to do now.
        name: Its name today, within the same section, if its meaning is the same.
        unused: The value at which it had no effect, or `_ANY` if it never had one on results:
            a saved recipe simply loses it then.
    """

    key: str
    instead: str
    name: str | None = None
    unused: Any = None


_SHIFT = "use shift, the shift itself: this factor times the model's own (3 for SD3)"
OLD_KEYS = (
    OldKey("fake_teacher.pull", "use fake_teacher.ida_rate", name="ida_rate"),
    OldKey("grid.shift_scale", _SHIFT, unused=1.0),
    OldKey("evaluate.arms", "use evaluate.configurations", name="configurations"),
    OldKey("evaluate.configurations.*.shift_scale", _SHIFT),
    OldKey("evaluate.scores", "use evaluate.metrics", name="metrics"),
    OldKey("evaluate.truth", "use evaluate.references", name="references"),
    OldKey("evaluate.readings", "use evaluate.cache", name="cache"),
    OldKey("evaluate.measurements", "use evaluate.cache", name="cache"),
    OldKey("preview.path", "use preview.prompts, which takes a file or a list", name="prompts"),
    OldKey("preview.rows", "leave it out, the picture shows the first 8 prompts", unused=_ANY),
    OldKey("log.tensorboard", "use log.sinks, such as [tensorboard]", unused=False),
    OldKey("preview.seed", "leave it out, picture i starts from the noise of seed i", unused=0),
)
"""In the order in which a saved recipe is rewritten."""


def migrated(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a saved recipe as they would be written now; the values given are left alone.

    Raises:
        ConfigError: It uses a setting that is gone.
    """
    data: dict[str, Any] = _addresses(copy.deepcopy(dict(saved)))
    for section, name in _imported_scores(data):
        section[name] = section[name].rpartition(":")[2]
    for section, name in _places(data, ["log", "tensorboard"]):
        section["sinks"] = ["tensorboard"] if section.pop(name) else []
    for old in OLD_KEYS:
        for section, name in _places(data, old.key.split(".")):
            value = section.pop(name)
            if old.name is not None:
                if value is not None:
                    section[old.name] = value
            elif old.unused is not _ANY and value != old.unused:
                raise _gone(old, f"was {value!r}")
    return data


def refuse_old(data: Mapping[str, Any]) -> None:
    """Take what is not a setting any more out of plain values of a recipe, and tell of it.

    Raises:
        ConfigError: There was such a setting; the line says what to write instead.
    """
    gone = []
    for old in OLD_KEYS:
        for section, name in _places(data, old.key.split(".")):
            del section[name]
            gone.append(_gone(old, "not a setting any more"))
    for section, name in _imported_scores(data):
        what = (
            f"preview.score: {section.pop(name)!r} is not imported any more; declare it as an "
            "entry point of fewstep.preview_scores in an installed package, and write its name"
        )
        gone.append(ConfigError(what))
    if gone:
        raise ConfigError.of(gone)


def _gone(old: OldKey, what: str) -> ConfigError:
    return ConfigError(f"{old.key}: {what}; {old.instead}")


def _imported_scores(data: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where a preview's score is written as ``module:function``."""
    places = _places(data, ["preview", "score"])
    return [(section, name) for section, name in places if ":" in str(section[name])]


def _places(data: Any, path: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Mappings that hold the last key of a path, and that key."""
    first, *rest = path
    if first == "*":
        for item in data if isinstance(data, list) else ():
            yield from _places(item, rest)
    elif isinstance(data, dict) and first in data:
        if rest:
            yield from _places(data[first], rest)
        else:
            yield data, first


def _addresses(value: Any) -> Any:
    """The same values with addresses inside packages as they are today."""
    if isinstance(value, dict):
        return {key: _addresses(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_addresses(inner) for inner in value]
    return current_address(value) if isinstance(value, str) else value
