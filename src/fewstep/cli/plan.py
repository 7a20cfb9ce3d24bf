"""The command ``fewstep plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.console import note, say, say_json, table


def plan(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="YAML file, or a shipped recipe's name.")
    ],
    gpu: Annotated[str, typer.Option(help="Kind of accelerator, such as h100-80.")],
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of one accelerator and hour, for the cost.")
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of the matrix peak reached; assumed: 0.4."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Override one recipe key; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Say what a run would take on given accelerators: memory, time and cost; writes nothing."""
    from fewstep.plan.gpus import find_gpu
    from fewstep.recipes import find

    find_gpu(gpu)
    path = find(recipe)
    from fewstep.config import load_recipe
    from fewstep.plan.estimate import plan as work_out

    note("walking through the network; nothing is loaded")
    found = work_out(
        load_recipe(path, overrides or [], files=False),
        gpu,
        gpus,
        utilisation=utilisation,
        price=price,
    )
    if as_json:
        say_json(found.as_json())
        return
    for title, columns, rows in found.tables():
        table(columns, rows, title)
        say("")
    say("estimates: nothing was measured, loaded or written")
