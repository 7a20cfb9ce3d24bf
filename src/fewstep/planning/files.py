"""What a run writes, and how large it gets."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.config import Recipe
from fewstep.planning.memory import MASTER
from fewstep.planning.parameters import Parameters


@dataclass(frozen=True)
class File:
    """A file, or files of one kind.

    Attributes:
        path: Inside the run folder.
        count: How many there are at the end of the run.
        size: Of all of them in bytes; None: small.
    """

    path: str
    count: int = 1
    size: int | None = None


def files_of(recipe: Recipe, sizes: Parameters) -> list[File]:
    """Files of a finished run; an export, measurements and a report come later, on request."""
    steps, every = recipe.train.steps, recipe.preview.every
    pictures = 1 + steps // every + (steps % every > 0)
    kept = checkpoints_kept(recipe)
    height, width = recipe.resolution.height, recipe.resolution.width
    teachers = recipe.preview.count * 3 * height * width * MASTER
    trained = sizes.trained * MASTER
    groups = {"student": trained, "fake_teacher": trained, "optimizers": 4 * trained}
    if recipe.ema:
        groups["ema"] = trained
    return [
        File("config.yaml"),
        File("metrics.jsonl"),
        File("previews/previews.json"),
        File("previews/teacher-*.safetensors", 1, teachers),
        File("previews/step-*.png", pictures),
        *(
            File(f"checkpoints/step-*/{group}.safetensors", kept, kept * size)
            for group, size in groups.items()
        ),
        File("checkpoints/step-*/state.json", kept),
    ]


def checkpoints_kept(recipe: Recipe) -> int:
    """Most checkpoints that are there at once: the newest, and the best that are not among them."""
    steps, keep = recipe.train.steps, recipe.checkpoint
    saved = set(range(keep.every, steps + 1, keep.every)) | {steps}
    scored = set(range(recipe.preview.every, steps + 1, recipe.preview.every)) | {steps}
    newest = min(keep.keep_last, len(saved))
    return min(newest + keep.keep_best, len(saved | (scored if keep.keep_best else set())))
