"""Options that several commands take, with one help text each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


def finite(value: float | None) -> float | None:
    """The number of an option, which infinity and NaN are not, whatever the bounds.

    Raises:
        typer.BadParameter: It is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number")
    return value


RecipeName: TypeAlias = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, or a shipped recipe's name.")
]
RunFolder: TypeAlias = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, made by distill.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override one recipe key; may be repeated."),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Continue from the newest checkpoint.")
]
Which: TypeAlias = Annotated[str, typer.Option(help="Which checkpoint: best or last.")]
Dtype: TypeAlias = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; default: as the run has it."),
]
Offload: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="model|none",
        help="model: one model at a time on the device, the others in the computer's memory; none: "
        "all stay there; default: text encoders are gone before the network comes.",
    ),
]
Moved: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH", help="Where the run's model is, if it has moved."),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
