"""Wrong words on the command line."""

from __future__ import annotations

from collections.abc import Iterator

from faults.table import RECIPE, RUN, Case


def cases() -> Iterator[Case]:
    """All of them."""
    yield Case("an unknown command", ["dstill"], names=("distill",))
    yield Case("too many steps", ["sample", RUN, "--prompt", "a", "--steps", "9"], names=("steps",))
    yield Case("no prompts", ["sample", RUN, "--json"], names=("--prompt",))
    yield Case("an unknown key", ["distill", RECIPE, "--set", "trian.x=1"], names=("trian",))
    yield Case(
        "a folder in place of a recipe",
        ["distill", "recipe.yaml"],
        setup=lambda folder: (folder / "recipe.yaml").mkdir(),
        names=("recipe.yaml",),
    )
