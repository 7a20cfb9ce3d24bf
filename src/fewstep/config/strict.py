"""What is strict: records that take no other keys, and one line about what is wrong and where."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError, did_you_mean, shortened
from fewstep.utils.terminal import one_line

# Bounds above are those that no sound run comes near; beyond them numbers overflow, or the machine
# works for days on a typing error.
Count = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(ge=1, le=1000)]
"""Steps, pictures or updates that are all made before anything else goes on."""
Size = Annotated[int, Field(ge=1, le=2**16)]
"""Pixels of a side, samples of a batch, processes, ranks of a matrix."""
Name = Annotated[str, Field(min_length=1)]
"""What is called something: a path, an address, a member of an open end."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(ge=1e-12, le=1e6)]
Rate = Annotated[float, Field(ge=1e-12, le=1)]
Guidance = Annotated[float, Field(ge=0, le=1000)]
Unit = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


STRICT = ConfigDict(
    frozen=True,
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)
"""How records of settings are read: nothing is converted, ignored or changed."""


class Section(BaseModel):
    """Part of a recipe: frozen, typed strictly, no other keys."""

    model_config = STRICT


class Named(BaseModel):
    """A plug-in by name; further keys are its own settings, which it checks itself."""

    model_config = STRICT | ConfigDict(extra="allow")

    name: Name
    """Its name."""

    @property
    def settings(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


def _as_named(value: Any) -> Any:
    """A name alone is a plug-in without settings."""
    return {"name": value} if isinstance(value, str) else value


PlugIn: TypeAlias = Annotated[Named, BeforeValidator(_as_named, json_schema_input_type=str | Named)]
"""In a recipe a name such as ``tensorboard``, or ``{name: wandb, project: my-project}``."""


class ConfigError(FewstepError):
    """A recipe that cannot be run; the message is one line and says where."""

    default_code = "config"


def explain(error: ValidationError, root: type[BaseModel], place: str = "") -> FewstepError:
    """All that is wrong, one problem for each key.

    Unknown keys come first, as they cause others; then the innermost, as a value that fits no
    member of a union has an error for each.

    Args:
        error: What pydantic found.
        root: The record that was to be made.
        place: What each line begins with.
    """
    details = sorted(error.errors(), key=lambda d: (d["type"] != "extra_forbidden", -len(d["loc"])))
    told: dict[tuple[str, ...], ConfigError] = {}
    for detail in details:
        path = tuple(_locate(detail["loc"], root)[0])
        if not any(other[: len(path)] == path for other in told):
            told[path] = ConfigError(place + _describe(detail, root))
    return ConfigError.of(list(told.values()))


def parse_override(text: str) -> tuple[str, Any]:
    """Dotted key and value of ``a.b.0.c=value``; the value is YAML.

    Raises:
        ConfigError: No ``=``, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {shortened(text)}: write it as section.key=value")
    try:
        return path, yaml.load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {shortened(text)}: not valid YAML: {one_line(str(error))}"
        ) from error


def set_value(data: dict[str, Any], path: str, value: Any, root: type[BaseModel]) -> None:
    """Set one value of nested plain data in place, by dotted key.

    What the data leave out on the way starts from its default in `root`, so that overriding one
    setting of a grid keeps the grid's name.

    Raises:
        ConfigError: A path that leads nowhere.
    """
    keys = path.split(".")
    if not all(keys) or len(keys) > yaml.DEEPEST:
        raise ConfigError(f"override {shortened(path)}: write it as section.key=value")
    node: Any = data
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = _default(root, keys[: depth + 1])
        node = node[_place(node, key, path)]
    node[_place(node, keys[-1], path)] = value


def refuse_odd_characters(data: Mapping[str, Any]) -> None:
    """Check that no text of a recipe holds a character that only terminals or C programs act on.

    Raises:
        ConfigError: Some do; the line says where.
    """
    odd = [
        ConfigError(f"{place}: holds the control character {found[0]!r}; remove it")
        for place, text in _texts(data, "")
        if (found := _ODD.search(text))
    ]
    if odd:
        raise ConfigError.of(odd)


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text of nested plain values with its dotted key; keys are texts as well."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            below = f"{place}.{key}" if place else str(key)
            yield below, str(key)
            yield from _texts(inner, below)


def _place(node: Any, key: str, override: str) -> Any:
    """Key or index of one part of an override's path."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise ConfigError(f"override {shortened(override)}: there is nothing to set at {key!r}")
    if key not in map(str, range(len(node))):
        raise ConfigError(
            f"override {shortened(override)}: {shortened(key)} must be a number below {len(node)}"
        )
    return int(key)


def _describe(detail: ErrorDetails, root: type[BaseModel]) -> str:
    path, owner = _locate(detail["loc"], root)
    where = ".".join(path)
    message, context = detail["msg"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{where}: unknown key; {did_you_mean(path[-1], _fields(owner))}"
        case "missing":
            return f"{where}: required, but missing"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
            return f"{where}.name: unknown {context['tag']!r}; {did_you_mean(context['tag'], tags)}"
        case "union_tag_not_found":
            return f"{where}: needs a name"
        case "literal_error":
            return f"{where}: must be {context['expected']}, not {shortened(detail['input'])}"
        case "value_error":
            message = str(context["error"])
        case _:
            message = f"{message}, not {shortened(detail['input'])}"
    return f"{where}: {message}" if where else message


def _locate(loc: tuple[int | str, ...], root: type) -> tuple[list[str], Any]:
    """Dotted path of a place that pydantic names, and the record that the place is a key of.

    Pydantic's own path also holds the name of the union's member; people did not write that.
    """
    path: list[str] = []
    owner: Any = root
    node: list[Any] = [root]
    for part in loc:
        if part == "[key]":  # a mapping's key that is wrong itself: it stands before this already
            continue
        label = str(part).removeprefix("constrained-")
        if len(node) > 1 and (named := [one for one in node if _label(one) == label]):
            node = named
            continue
        path.append(str(part))
        owner = node[0] if node else None
        field = _fields(owner).get(str(part))
        inner = field.annotation if field is not None else (get_args(owner) or (None,))[-1:][0]
        if get_origin(owner) is tuple:
            inner = get_args(owner)[0]
        node = _members(inner)
    return path, owner


def _members(annotation: Any) -> list[Any]:
    """The types a value may have: a union's members, None left out."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for each in get_args(annotation) for inner in _members(each)]
    return [] if annotation in (None, type(None)) else [annotation]


def _fields(record: Any) -> dict[str, Any]:
    return getattr(record, "__pydantic_fields__", {})


def _label(member: Any) -> Any:
    """What pydantic calls a union's member in a path: a record's own name, or its type."""
    field = _fields(member).get("name")
    if field is not None:
        return field.default
    return member.__name__ if isinstance(member, type) else str(member)


def _default(root: type, keys: list[str]) -> Any:
    """Plain value that a missing key stands for; an empty mapping where there is no default."""
    owners: list[Any] = [root]
    for key in keys[:-1]:
        fields = [_fields(owner)[key] for owner in owners if key in _fields(owner)]
        owners = _members(fields[0].annotation) if fields else []
    fields = [_fields(owner)[key] for owner in owners if (key := keys[-1]) in _fields(owner)]
    default = fields[0].get_default(call_default_factory=True) if fields else None
    if default is None or default is PydanticUndefined:
        return {}
    return TypeAdapter(type(default)).dump_python(default, mode="json")
