"""Evaluating a run: every arm is drawn, read and scored; the figures go to evaluation.json."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.config import EvaluateRecipe, Recipe
from fewstep.data.prompts import read_prompts
from fewstep.evaluation import features, oracles
from fewstep.evaluation.configurations import Arm, Reader, Shelf
from fewstep.evaluation.criteria import is_rival
from fewstep.evaluation.metrics.base import Readings, References, Score, available, build
from fewstep.inference.load import Run
from fewstep.inference.sample import Sampler, sample_batch, to_pixels
from fewstep.models.base import Backbone
from fewstep.utils import hardware
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_model, digest_text, write_json
from fewstep.utils.resources import resolve

Say = Callable[[str], None]
_REAL_SEED, _FLOOR_SEED = 71, 73  # real pictures, and others that show the scores' floor


def evaluate_run(
    run_folder: str | Path, *, which: str = "best", say: Say = lambda text: None
) -> dict[str, Any]:
    """Evaluates the arms that the run's recipe declares; writes evaluation.json and a gallery.

    One network is held in memory: the teacher's arms come first, then the student's weights take
    the teacher's place. The teacher's readings are kept under a key of all that they depend on, so
    that the next evaluation need not draw them again.

    Args:
        run_folder: A run with at least one checkpoint.
        which: The student's checkpoint, `best` or `last`.
        say: Told what is being done, a line at a time.

    Returns:
        What evaluation.json holds.

    Raises:
        FewstepError: No prompts, an unknown score, or a score that needs a truth that is not there.
    """
    began = time.monotonic()
    run = Run.open(run_folder)
    settings = run.recipe.evaluate
    scores, reader = choose_scores(settings), make_reader(settings)
    backbone = run.load_backbone()
    arms = resolve_arms(settings, run, backbone)
    work = _Work(backbone, reader, shelf(settings), run.folder / "evaluation")
    rows, readings = [], []
    for arm in (arm for arm in arms if arm.model == "teacher"):
        say(f"{arm.name}: {arm.sampler.evaluations(backbone)} evaluations a picture")
        reading, kept = work.read(arm, backbone.net, digest_model(backbone.source))
        rows.append(work.look_at(arm, backbone.net, settings.gallery) | {"kept": kept})
        readings.append(reading)
    student = run.load_student(backbone, which)
    for arm in (arm for arm in arms if arm.model == "student"):
        say(f"{arm.name}: {arm.sampler.evaluations(backbone)} evaluations a picture")
        rows.append(work.look_at(arm, student.net, settings.gallery) | {"kept": False})
        readings.append(reader.read(backbone, student.net, arm.sampler))
    say("scores")
    evaluation = _header(run, reader) | {"which": which, "step": student.step, "arms": rows}
    _score(evaluation, readings, reader, scores)
    evaluation["seconds"] = round(time.monotonic() - began, 1)
    write_json(run.folder / "evaluation.json", evaluation)
    return evaluation


def keep_teacher(recipe: Recipe, folder: Path, *, say: Say = lambda text: None) -> list[str]:
    """Draws a recipe's teacher arms and keeps their readings in a folder, to ship with the model.

    A recipe that names the folder as `evaluate.readings` is then evaluated without drawing the
    teacher, for as long as model, prompts, feature space and truth stay as they are.

    Args:
        recipe: Any recipe of the model; nothing is trained.
        folder: Where to.
        say: Told what is being done.

    Returns:
        Names of the arms.
    """
    run, reader = Run(folder, recipe), make_reader(recipe.evaluate)
    backbone = run.load_backbone()
    work = _Work(backbone, reader, Shelf((folder, *shelf(recipe.evaluate).folders)), folder)
    arms = [a for a in resolve_arms(recipe.evaluate, run, backbone) if a.model == "teacher"]
    for arm in arms:
        say(f"{arm.name}: {arm.sampler.evaluations(backbone)} evaluations a picture")
        model = digest_model(backbone.source)
        reading, _ = work.read(arm, backbone.net, model)
        work.shelf.keep(work.key(arm, backbone.net, model), reading)
    return [arm.name for arm in arms]


@dataclass(frozen=True, eq=False)
class _Work:
    """What one evaluation does to each of its arms."""

    backbone: Backbone
    reader: Reader
    shelf: Shelf
    folder: Path

    def look_at(self, arm: Arm, net: nn.Module, count: int) -> dict[str, Any]:
        """Draws the gallery's pictures, which also tells the seconds per picture."""
        prompts = list(self.reader.prompts[:count])
        seeds = range(self.reader.seed, self.reader.seed + len(prompts))
        began = time.perf_counter()
        images = sample_batch(self.backbone, net, prompts, seeds, sampler=arm.sampler)
        seconds = (time.perf_counter() - began) / len(prompts)
        slug = arm.name.replace("@", "-").replace(" ", "-")
        self._write(slug, prompts, images)
        return {
            "name": arm.name,
            "model": arm.model,
            "steps": arm.sampler.steps,
            "guidance": arm.sampler.guidance,
            "own_shift": arm.own_shift,
            "base_sigmas": arm.sampler.base_sigmas,
            "sigmas": [round(float(s), 6) for s in arm.sampler.sigmas(self.backbone)],
            "evaluations": arm.sampler.evaluations(self.backbone),
            "seconds_per_image": round(seconds, 5),
            "gallery": [f"evaluation/{slug}/{i:03}.png" for i in range(len(prompts))],
        }

    def read(self, arm: Arm, net: nn.Module, model: str) -> tuple[Readings, bool]:
        """Readings of a model with a fingerprint, and whether they were kept from before."""
        key = self.key(arm, net, model)
        known = self.shelf.find(key)
        if known is not None:
            return known, True
        drawn = self.reader.read(self.backbone, net, arm.sampler)
        self.shelf.keep(key, drawn)
        return drawn, False

    def key(self, arm: Arm, net: nn.Module, model: str) -> str:
        """Fingerprint of all that an arm's readings depend on."""
        size = arm.sampler.size(self.backbone)
        options = self.backbone.stock_call(arm.sampler.base_sigmas, *size)
        call = f"{options} {next(net.parameters()).dtype}"
        return digest_text(model, call, repr(arm.sampler), self.reader.key)

    def _write(self, slug: str, prompts: list[str], images: Tensor) -> None:
        folder = self.folder / slug
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, image in enumerate(images):
            to_pixels(image).save(folder / f"{index:03}.png")
        write_json(self.folder / "gallery.json", {"prompts": prompts, "seed": self.reader.seed})


def _header(run: Run, reader: Reader) -> dict[str, Any]:
    settings = run.recipe.evaluate
    return {
        "prompts": {"file": settings.prompts, "count": len(reader.prompts)},
        "repeats": list(reader.repeated),
        "seed": settings.seed,
        "features": settings.features,
        "truth": settings.truth,
        "hardware": hardware.describe(),
    }


def _score(
    evaluation: dict[str, Any], readings: list[Readings], reader: Reader, scores: list[Score]
) -> None:
    """Adds `scores` to every arm, and a row of real pictures where the truth can draw them."""
    rows = evaluation["arms"]
    teachers = [i for i, row in enumerate(rows) if row["model"] == "teacher"]
    named: dict[str, Readings] = {}
    if teachers:
        reference = max(teachers, key=lambda i: rows[i]["evaluations"])
        named["teacher"] = readings[reference]
        evaluation["reference"] = rows[reference]["name"]
    if reader.truth:
        named["real"] = reader.read_real(_REAL_SEED)
    for row, reading in zip(rows, readings, strict=True):
        row["scores"] = _figures(scores, reading, References(named, _rival(row, rows, readings)))
    if reader.truth:
        floor = reader.read_real(_FLOOR_SEED)
        evaluation["real"] = {"scores": _figures(scores, floor, References(named))}


def _rival(
    arm: dict[str, Any], rows: list[dict[str, Any]], readings: list[Readings]
) -> Readings | None:
    """The guided teacher at as many steps as a student, if it was drawn; a teacher has no rival."""
    if arm["model"] != "student":
        return None
    pairs = zip(rows, readings, strict=True)
    return next((reading for row, reading in pairs if is_rival(row, arm["steps"])), None)


def _figures(scores: list[Score], arm: Readings, references: References) -> dict[str, float]:
    figures: dict[str, float] = {}
    for score in scores:
        figures |= score(arm, references)
    return {name: round(value, 6) for name, value in figures.items()}


def make_reader(settings: EvaluateRecipe) -> Reader:
    """What to draw and how to read it, as the recipe wants it.

    Raises:
        FewstepError: No prompts to evaluate on, or prompts outside the truth's grammar.
    """
    if settings.prompts is None:
        raise FewstepError("evaluate.prompts is not set: name a file with prompts, one per line")
    prompts = read_prompts(settings.prompts).distinct[: settings.count]
    judge = oracles.load(settings.truth) if settings.truth else None
    strange = [prompt for prompt in prompts if judge and not judge.knows(prompt)]
    if strange:
        raise FewstepError(
            f"evaluate.prompts: the truth {settings.truth!r} cannot judge {strange[0]!r}"
        )
    count, times = settings.repeats
    space = features.load(settings.features)
    repeated = (min(count, len(prompts)), times)
    return Reader(prompts, repeated, settings.seed, space, judge, settings.batch)


def choose_scores(settings: EvaluateRecipe) -> list[Score]:
    """The scores named in the recipe, else all that apply.

    Raises:
        FewstepError: An unknown name, or a score that needs a truth in a recipe without one.
    """
    if settings.scores is None:
        return [s for s in build(available()) if settings.truth or not s.needs_truth]
    scores = build(settings.scores)
    for score in scores:
        if score.needs_truth and not settings.truth:
            raise FewstepError(
                f"evaluate.scores: {score.name!r} needs a ground truth: set evaluate.truth"
            )
    return scores


def resolve_arms(settings: EvaluateRecipe, run: Run, backbone: Backbone) -> list[Arm]:
    """The declared arms with the model's defaults filled in; the student runs without guidance."""
    height, width = run.size
    arms = []
    for declared in settings.arms:
        guidance = declared.guidance
        if guidance is None:
            guidance = backbone.default_guidance if declared.model == "teacher" else 1.0
        own = run.recipe.grid.shift_scale if declared.model == "student" else 1.0
        scale = declared.shift_scale or own
        sampler = Sampler(
            declared.steps or backbone.default_steps, guidance, height, width, shift_scale=scale
        )
        arms.append(Arm(declared.model, sampler, own_shift=scale == own))
    return arms


def shelf(settings: EvaluateRecipe) -> Shelf:
    """Where readings are kept: the user's cache, then whatever came with the model."""
    home = os.environ.get("FEWSTEP_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fewstep"
    )
    shipped = [resolve(settings.readings)] if settings.readings else []
    return Shelf((Path(home) / "readings", *shipped))
