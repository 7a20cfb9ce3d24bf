"""The command line of the tiny world's making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.utils.errors import FewstepError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
world = typer.Typer(help="The embedded tiny world.")


@world.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the finished world goes.")] = Path(
        "runs/world/data"
    ),
    work: Annotated[Path, typer.Option(help="Logs, and training that is not finished.")] = Path(
        "runs/world/work"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Decides everything.")] = 0,
    start: Annotated[
        str | None, typer.Option(help="Pipeline folder to train on, instead of from nothing.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu, cuda ...")] = "auto",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of every network, to try whether it works.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Let torch compile the transformer: 1.4x as fast.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the tiny pipeline from nothing, as it ships: hours; continues what was begun."""
    from fewstep.utils.hardware import pick_device
    from fewstep.utils.resources import resolve
    from toyworld_training.make import make

    begin = resolve(start) if start else None
    if begin and not (begin / "model_index.json").is_file():
        raise FewstepError(
            f"--start: {begin} is not a pipeline folder (no model_index.json)", code="missing-file"
        )
    place = str(pick_device(device))
    make(
        work,
        out,
        seed=seed,
        start=begin,
        device=place,
        steps=steps,
        compiled=compiled,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps({"folder": str(out), "seed": seed}) if as_json else f"world: {out}")


@world.command()
def show(
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("scenes.png"),
    count: Annotated[int, typer.Option(min=1, max=64, help="Prompts, one row each.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts and scenes.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw some captioned scenes into one PNG: a row per prompt, eight scenes each."""
    from toyworld_training.sheet import write_sheet

    captions = write_sheet(out, count=count, seed=seed)
    made = {"file": str(out), "prompts": captions}
    typer.echo(json.dumps(made) if as_json else f"{len(captions)} prompts: {out}")


if __name__ == "__main__":
    world()
