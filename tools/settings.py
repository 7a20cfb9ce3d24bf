"""Writes the reference page of all settings and the JSON schema of recipes, from the records.

    python tools/settings.py            write docs/settings.md and the schema
    python tools/settings.py --check    exit with 1 if either is not what the records say

Types, bounds, defaults and meanings come from the records in `fewstep.config`, the objectives and
the grids and laws; nothing is written twice.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fewstep import objectives
from fewstep.config import Recipe
from fewstep.config.migrate import OLD_KEYS
from fewstep.config.shipped import SCHEMA

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
DOZEN = (
    "model.path",
    "model.dtype",
    "data.prompts",
    "data.batch_size",
    "data.accumulate",
    "data.encode_ahead",
    "resolution.height",
    "resolution.width",
    "student.mode",
    "student.optimizer.lr",
    "student.gradient_checkpointing",
    "train.steps",
    "evaluate.prompts",
)
_WIDTH = 118
_HEAD = """\
# Settings

Every setting of a recipe, by dotted key: its type, its default and what it is for.
`--set KEY=VALUE` on the command line and `Recipe.named(NAME, {KEY: VALUE})` in Python change one;
items of a list are numbered from 0, as in `objectives.0.alpha=3.5`. A key that is not listed here
is an error that names the nearest one.

This page is made from the code by `python tools/settings.py`, and so is a JSON schema. Editors that
use the YAML language server complete and check a recipe with it if its first line is
`# yaml-language-server: $schema=PATH`; this prints the path:

```
python -c "from fewstep.config.shipped import SCHEMA; print(SCHEMA)"
```

## The dozen you need

A shipped recipe (`fewstep recipes` lists them) sets the rest.
"""
_KINDS = {
    "null": "null",
    "string": "text",
    "boolean": "true or false",
    "integer": "integer",
    "number": "number",
    "array": "list",
    "object": "mapping",
}
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
}
EXTENDS = {
    "type": "string",
    "minLength": 1,
    "description": "Another recipe that this one changes: the name of a shipped one, or a file, "
    "relative to this one. Keys given here win, also inside sections; lists are replaced whole, "
    "and so is a mapping that is given another `name`. A run's own recipe has it all.",
}
Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """The JSON schema of recipes; built-in objectives with their own settings."""
    schema: Schema = Recipe.model_json_schema()
    names = [
        name
        for name in objectives.available()
        if objectives.settings_model(name).__module__.startswith("fewstep.objectives.")
    ]
    for name in names:
        own: Schema = objectives.settings_model(name).model_json_schema()
        schema["$defs"] |= own.pop("$defs", {})
        own["required"] = ["name"]
        _inherit_descriptions(own, objectives.settings_model(name))
        schema["$defs"][f"objective_{name}"] = own
    listed = [{"$ref": f"#/$defs/objective_{name}"} for name in names]
    other = {"$ref": "#/$defs/ObjectiveRecipe", "properties": {"name": {"not": {"enum": names}}}}
    schema["properties"]["objectives"]["items"] = {"anyOf": [*listed, other]}
    for record in schema["$defs"].values():
        for field in record.get("properties", {}).values():
            field.pop("title", None)
    schema["properties"] = {"extends": EXTENDS} | schema["properties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fewstep recipe",
    } | {key: value for key, value in schema.items() if key != "title"}


def for_editors(schema: Schema) -> Schema:
    """The same without required sections and keys: a recipe may have them from what it extends."""
    defs = {
        name: record | {"required": [key for key in record.get("required", ()) if key == "name"]}
        for name, record in schema["$defs"].items()
    }
    keys = schema["properties"]
    sizes = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    keys = keys | {"resolution": {"anyOf": [keys["resolution"], sizes]}}
    kept = {key: value for key, value in schema.items() if key != "required"}
    return kept | {"properties": keys, "$defs": defs}


def _inherit_descriptions(schema: Schema, model: type[BaseModel]) -> None:
    """A field that a subclass gives another default has its meaning from the base."""
    for base in model.__mro__:
        for name, field in getattr(base, "__pydantic_fields__", {}).items():
            if field.description:
                schema["properties"][name].setdefault("description", field.description)


class Page:
    """The reference page of a recipe's schema."""

    def __init__(self, schema: Schema) -> None:
        """Takes the schema that `recipe_schema` makes."""
        self._schema = schema
        self._records: dict[str, Schema] = schema["$defs"]

    def text(self) -> str:
        """The whole page, in Markdown."""
        entries = dict(self.entries(self._schema))
        lines = [_HEAD, *(entries[key] for key in DOZEN)]
        for name, field in self._schema["properties"].items():
            lines += [f"\n## {name}\n", *self._section(name, field)]
        laws = "Laws of noise levels, Eq. 9: for `fake_teacher.law`, for `probe`, and of sites."
        sites = "Points at which the student is evaluated, Eq. 20: for `site` of an objective."
        for title, about, records in (
            ("Laws", laws, ("Uniform", "UpToAnchor", "LogitNormal")),
            ("Sites", sites, ("AtAnchor", "AlongVelocity", "FreshNoise")),
            ("Distances", "For `distance` of `isg`, Eq. 29.", ("Squared", "Charbonnier")),
        ):
            lines += [f"\n## {title}\n", about]
            lines += [line for record in records for line in self._variant(record, "")]
        lines += ["\n## Keys of earlier versions\n"]
        lines += [_wrapped(f"- `{old.key}`: {old.instead}.", "  ") for old in OLD_KEYS]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"

    def entries(self, record: Schema, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Dotted keys below a record, with the lines that describe each."""
        required = record.get("required", ())
        for name, field in record["properties"].items():
            key = f"{prefix}{name}"
            inner = self._inner(field)
            if inner is not None:
                if "anyOf" in field and "description" in field:  # a mapping that may be null
                    yield key, self._entry(key, field, name in required)
                yield from self.entries(inner[0], f"{key}{inner[1]}")
            elif name != "name" or "const" not in field:
                yield key, self._entry(key, field, name in required)

    def _section(self, name: str, field: Schema) -> Iterator[str]:
        inner = self._inner(field)
        described = field.get("description") or (inner and inner[0].get("description")) or ""
        if described:
            yield _wrapped(described) + "\n"
        if name == "objectives":
            for key in sorted(self._records):
                if key.startswith("objective_"):
                    yield from self._variant(key, "objectives.*.")
        elif name == "grid":
            for each in field["oneOf"]:
                yield from self._variant(each["$ref"].rpartition("/")[2], "grid.")
        elif inner is not None:
            yield from (text for _, text in self.entries(inner[0], f"{name}{inner[1]}"))

    def _variant(self, record: str, prefix: str) -> Iterator[str]:
        """A record that a recipe chooses by name, and its settings."""
        schema = self._records[record]
        yield f"\n### `name: {schema['properties']['name']['const']}`\n"
        yield _wrapped(schema.get("description", "")) + "\n"
        yield from (text for _, text in self.entries(schema, prefix))

    def _inner(self, field: Schema) -> tuple[Schema, str] | None:
        """The record whose keys are a field's own, and what stands between in dotted keys."""
        options = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        if len(options) != 1:
            return None
        (only,) = options
        between = "."
        if only.get("type") == "array" and "$ref" in only.get("items", {}):
            only, between = only["items"], ".*."
        record = self._records.get(only.get("$ref", "").rpartition("/")[2])
        return (record, between) if record and "properties" in record else None

    def _entry(self, key: str, field: Schema, required: bool) -> str:
        default = "required" if required else f"default `{_plain(field.get('default', {}))}`"
        meaning = field.get("description", "")
        return _wrapped(f"- **`{key}`** ({self._kind(field)}; {default}): {meaning}", "  ")

    def _kind(self, field: Schema) -> str:
        """The type of a value in words, with its bounds."""
        if "$ref" in field:
            record = self._records[field["$ref"].rpartition("/")[2]]
            name = record.get("properties", {}).get("name", {})
            return f"`name: {name['const']}`" if "const" in name else "mapping"
        if "const" in field or "enum" in field:
            return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
        if options := field.get("anyOf") or field.get("oneOf"):
            return " or ".join(dict.fromkeys(self._kind(option) for option in options))
        if places := field.get("prefixItems"):
            kinds = dict.fromkeys(self._kind(place) for place in places)
            return f"{len(places)} values: {', '.join(kinds)}"
        kind = _KINDS.get(field.get("type", ""), "any value")
        if field.get("items"):
            kind += f" of {self._kind(field['items'])}"
        bounds = [f"{word} {field[key]:,.12g}" for key, word in _BOUNDS.items() if key in field]
        return " ".join([kind, *bounds])


def _plain(value: Any) -> str:
    """A default as YAML would have it on one line; of plug-ins and records the names."""
    if isinstance(value, dict) and "name" in value:
        return f"{{name: {value['name']}}}"
    if isinstance(value, list):
        items = (one["name"] if isinstance(one, dict) else _plain(one) for one in value)
        return f"[{', '.join(items)}]"
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _wrapped(text: str, indent: str = "") -> str:
    """One paragraph in lines that are not too long; double backquotes become single ones."""
    text = textwrap.fill(
        " ".join(text.replace("``", "`").split()),
        _WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return re.sub(r"(?m)^( *\d+)\. ", r"\1\\. ", text)  # a number there would begin a list


def made() -> dict[Path, str]:
    """Both files as the records have them now."""
    schema = recipe_schema()
    return {SCHEMA: json.dumps(for_editors(schema), indent=1) + "\n", PAGE: Page(schema).text()}


def stale() -> list[Path]:
    """Files that are not what the records say."""
    return [
        file
        for file, text in made().items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """Writes the files, or tells which are stale."""
    if "--check" in sys.argv[1:]:
        for file in (files := stale()):
            print(f"{file.relative_to(ROOT)}: run python tools/settings.py")
        sys.exit(bool(files))
    for file, text in made().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
