"""The command ``fewstep recipes``: those that ship, to be read and copied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.console import say, say_json, table
from fewstep.cli.options import Json
from fewstep.utils.errors import FewstepError


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Which one to print; default: list all.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Copy it; FILE must not be there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that ship, or print or copy one of them."""
    if name is None:
        if to is not None:
            raise FewstepError("recipes: --to copies one recipe; name it", code="missing-input")
        rows = listed()
        if as_json:
            say_json({"recipes": rows})
        else:
            columns = ("name", "trains", "about")
            table(columns, [[row[column] for column in columns] for row in rows])
        return
    from fewstep.config import shipped

    text = shipped.find(name).read_text(encoding="utf-8")
    if to is not None:
        write_new(to, text)
        if not as_json:
            say(f"recipe: {to}")
            return
    if as_json:
        say_json({"name": name, "text": text} | ({"file": str(to)} if to else {}))
    else:
        say(text.rstrip())


def listed() -> list[dict[str, Any]]:
    """A row per recipe that ships: its name, its model, what it trains, its first sentence."""
    from fewstep.config import shipped
    from fewstep.utils import yaml

    rows = []
    for name in shipped.available():
        text = shipped.find(name).read_text(encoding="utf-8")
        values = yaml.load(text)
        mode = values.get("student", {}).get("mode", "full")
        rows.append(
            {
                "name": name,
                "model": values["model"]["path"],
                "mode": mode,
                "trains": "a LoRA" if mode == "lora" else "the network",
                "about": text.splitlines()[0].lstrip("# "),
            }
        )
    return rows


def write_new(file: Path, text: str) -> None:
    """Writes a text to a file that must not be there yet, whole or not at all.

    Raises:
        FewstepError: Something is there, or the disk refuses.
    """
    import os

    from fewstep.utils.files import made, write_text
    from fewstep.utils.resources import expand

    file = expand(file)
    if os.path.lexists(file):
        raise FewstepError(f"{file}: is there already; choose another name", code="exists")
    with made(file.parent):
        write_text(file, text)
