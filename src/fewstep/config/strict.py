"""What is strict: records that take no other keys, and one line about what is wrong and where."""

from __future__ import annotations

import types
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError, did_you_mean

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Part of a recipe: frozen, typed strictly, no other keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Named(BaseModel):
    """A plug-in by name; further keys are its own settings, which it checks itself."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    name: str
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


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One line about the first thing wrong.

    Unknown keys come first, as they cause the others; then the innermost, as a value that fits no
    member of a union has an error for each.
    """
    details = sorted(error.errors(), key=lambda d: (d["type"] != "extra_forbidden", -len(d["loc"])))
    line = _describe(details[0], root)
    return line if len(details) == 1 else f"{line} (and {len(details) - 1} more)"


def parse_override(text: str) -> tuple[str, Any]:
    """Dotted key and value of ``a.b.0.c=value``; the value is YAML.

    Raises:
        ConfigError: No ``=``, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r}: write it as section.key=value")
    try:
        return path, yaml.load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: not valid YAML: {one_line(error)}") from error


def set_value(data: dict[str, Any], path: str, value: Any, root: type[BaseModel]) -> None:
    """Set one value of nested plain data in place, by dotted key.

    What the data leave out on the way starts from its default in `root`, so that overriding one
    setting of a grid keeps the grid's name.

    Raises:
        ConfigError: A path that leads nowhere.
    """
    keys = path.split(".")
    if not all(keys):
        raise ConfigError(f"override {path!r}: write it as section.key=value")
    node: Any = data
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = _default(root, keys[: depth + 1])
        node = node[_place(node, key, path)]
    node[_place(node, keys[-1], path)] = value


def one_line(error: Exception) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split())


def _place(node: Any, key: str, override: str) -> Any:
    """Key or index of one part of an override's path."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise ConfigError(f"override {override!r}: there is nothing to set at {key!r}")
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"override {override!r}: {key!r} must be a number below {len(node)}")
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
            return f"{where}: must be {context['expected']}, not {detail['input']!r}"
        case "value_error":
            message = str(context["error"])
        case _:
            message = f"{message}, not {detail['input']!r}"
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
        if len(node) > 1 and (named := [one for one in node if _label(one) == part]):
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
