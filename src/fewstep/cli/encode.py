"""The command ``fewstep encode``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.console import note, say, say_json
from fewstep.cli.options import Json
from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import expand


def encode(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPTS", help="File, folder of tables or id of a data set."),
    ] = None,
    model: Annotated[str, typer.Option(help="Diffusers folder or hub id.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "--option",
            metavar="NAME=VALUE",
            help="Option of the model, such as max_sequence_length; or dtype, device, batch.",
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="One more; may be repeated.")] = None,
    column: Annotated[str | None, typer.Option(help="Column with the prompts.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of a folder or data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default embeddings/MODEL-KEY.")] = None,
    as_json: Json = False,
) -> None:
    """Encode prompts ahead, for data.cache; run it again to go on or to add more."""
    from fewstep.data.precompute import Encoding, encode_ahead, gather_prompts

    gathered = gather_prompts(prompts or [], prompt or [], column=column, split=split)
    if not model:
        raise FewstepError(
            "encode: no model; give --model FOLDER (or a hub id)", code="missing-input"
        )
    encoding = Encoding.from_settings(model, _settings(settings))
    done = encode_ahead(gathered.texts, encoding, out and expand(out), note=note)
    if as_json:
        odd = {name: getattr(gathered, name) for name in ("duplicates", "empty", "undecodable")}
        say_json(done | odd)
        return
    say(f"{gathered.describe(done['overlong'])}: {done['encoded']} encoded, {done['kept']} kept")
    say(f"embeddings: {done['folder']} ({done['bytes'] / 1e9:.2f} GB)")
    say(f"next: fewstep distill RECIPE --set data.cache={done['folder']}")


def _settings(written: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs of the command line; the values are YAML, as in recipes."""
    from fewstep.utils import yaml

    found = {}
    for each in written or []:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise FewstepError(f"--set {each}: write it as NAME=VALUE", code="usage")
        try:
            found[name] = yaml.load(value)
        except yaml.YAMLError as error:
            raise FewstepError(
                f"--set {each}: the value is not valid YAML", code="usage"
            ) from error
    return found
