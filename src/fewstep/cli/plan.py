"""The command ``fewstep plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli.console import say, say_json
from fewstep.cli.options import Json, Overrides, RecipeName, finite


def plan(
    recipe: RecipeName,
    gpu: Annotated[str, typer.Option(help="Kind of accelerator, such as h100-80.")],
    gpus: Annotated[int, typer.Option(min=1, max=2**16, help="How many of them.")] = 1,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e6, callback=finite, help="Of one accelerator and hour, for the cost."
        ),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            callback=finite,
            help="Share of the matrix peak reached; assumed: 0.22, compiled 0.3.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what a run would take on given accelerators: memory, time and cost; writes nothing."""
    from fewstep.planning.gpus import find_gpu

    find_gpu(gpu)
    from fewstep.config import Recipe
    from fewstep.planning import plan as estimate

    result = estimate(
        Recipe.named(recipe, overrides or []),
        gpu,
        gpus=gpus,
        utilisation=utilisation,
        price=price,
    )
    if as_json:
        say_json(result.as_json())
        return
    say(f"{result}\n")
    for line in result.notes:
        say(f"note: {line}")
    say("estimates: nothing was measured, loaded or written")
