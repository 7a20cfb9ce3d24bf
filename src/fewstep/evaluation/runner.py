"""Evaluating a run: draw, read and score every configuration."""

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
from fewstep.evaluation.configurations import Configuration, Extractor, FeatureCache
from fewstep.evaluation.criteria import is_baseline
from fewstep.evaluation.metrics.base import Measurements, References, Score, available, build
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
    """Evaluates the recipe's configurations; writes evaluation.json and a gallery.

    One network is held in memory: the teacher's configurations come first, then the student's
    weights take
    the teacher's place. The teacher's measurements are kept under a key of all that they depend
    on, so
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
    scores, extractor = choose_scores(settings), make_extractor(settings)
    backbone = run.load_backbone()
    configurations = resolve_configurations(settings, run, backbone)
    work = _Work(backbone, extractor, feature_cache(settings), run.folder / "evaluation")
    rows, measurements = [], []
    for configuration in (
        configuration for configuration in configurations if configuration.model == "teacher"
    ):
        say(_announced(configuration, backbone))
        reading, kept = work.read(configuration, backbone.net, digest_model(backbone.source))
        rows.append(work.look_at(configuration, backbone.net, settings.gallery) | {"kept": kept})
        measurements.append(reading)
    student = run.load_student(backbone, which)
    for configuration in (
        configuration for configuration in configurations if configuration.model == "student"
    ):
        say(_announced(configuration, backbone))
        rows.append(work.look_at(configuration, student.net, settings.gallery) | {"kept": False})
        measurements.append(extractor.read(backbone, student.net, configuration.sampler))
    say("scores")
    evaluation = _header(run, extractor) | {
        "which": which,
        "step": student.step,
        "configurations": rows,
    }
    _score(evaluation, measurements, extractor, scores)
    evaluation["seconds"] = round(time.monotonic() - began, 1)
    write_json(run.folder / "evaluation.json", evaluation)
    return evaluation


def keep_teacher(recipe: Recipe, folder: Path, *, say: Say = lambda text: None) -> list[str]:
    """Draws a recipe's teacher configurations and keeps their measurements in a folder.

    A recipe that names the folder as `evaluate.measurements` is then evaluated without drawing the
    teacher, for as long as model, prompts, feature space and truth stay as they are.

    Args:
        recipe: Any recipe of the model; nothing is trained.
        folder: Where to.
        say: Told what is being done.

    Returns:
        Names of the configurations.
    """
    run, extractor = Run(folder, recipe), make_extractor(recipe.evaluate)
    backbone = run.load_backbone()
    work = _Work(
        backbone, extractor, FeatureCache((folder, *feature_cache(recipe.evaluate).folders)), folder
    )
    configurations = [
        a for a in resolve_configurations(recipe.evaluate, run, backbone) if a.model == "teacher"
    ]
    for configuration in configurations:
        say(_announced(configuration, backbone))
        model = digest_model(backbone.source)
        reading, _ = work.read(configuration, backbone.net, model)
        work.feature_cache.keep(work.key(configuration, backbone.net, model), reading)
    return [configuration.name for configuration in configurations]


@dataclass(frozen=True, eq=False)
class _Work:
    """What one evaluation does to each of its configurations."""

    backbone: Backbone
    extractor: Extractor
    feature_cache: FeatureCache
    folder: Path

    def look_at(self, configuration: Configuration, net: nn.Module, count: int) -> dict[str, Any]:
        """Draws the gallery's pictures, which also tells the seconds per picture."""
        prompts = list(self.extractor.prompts[:count])
        seeds = range(self.extractor.seed, self.extractor.seed + len(prompts))
        began = time.perf_counter()
        images = sample_batch(self.backbone, net, prompts, seeds, sampler=configuration.sampler)
        seconds = (time.perf_counter() - began) / len(prompts)
        slug = configuration.name.replace("@", "-").replace(" ", "-")
        self._write(slug, prompts, images)
        return {
            "name": configuration.name,
            "model": configuration.model,
            "steps": configuration.sampler.steps,
            "guidance": configuration.sampler.guidance,
            "own_shift": configuration.own_shift,
            "base_sigmas": configuration.sampler.base_sigmas,
            "sigmas": [round(float(s), 6) for s in configuration.sampler.sigmas(self.backbone)],
            "evaluations": configuration.sampler.evaluations(self.backbone),
            "seconds_per_image": round(seconds, 5),
            "gallery": [f"evaluation/{slug}/{i:03}.png" for i in range(len(prompts))],
        }

    def read(
        self, configuration: Configuration, net: nn.Module, model: str
    ) -> tuple[Measurements, bool]:
        """Measurements of a model with a fingerprint, and whether they were kept from before."""
        key = self.key(configuration, net, model)
        known = self.feature_cache.find(key)
        if known is not None:
            return known, True
        drawn = self.extractor.read(self.backbone, net, configuration.sampler)
        self.feature_cache.keep(key, drawn)
        return drawn, False

    def key(self, configuration: Configuration, net: nn.Module, model: str) -> str:
        """Fingerprint of all that an configuration's measurements depend on."""
        size = configuration.sampler.size(self.backbone)
        options = self.backbone.stock_call(configuration.sampler.base_sigmas, *size)
        call = f"{options} {next(net.parameters()).dtype}"
        return digest_text(model, call, repr(configuration.sampler), self.extractor.key)

    def _write(self, slug: str, prompts: list[str], images: Tensor) -> None:
        folder = self.folder / slug
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, image in enumerate(images):
            to_pixels(image).save(folder / f"{index:03}.png")
        write_json(self.folder / "gallery.json", {"prompts": prompts, "seed": self.extractor.seed})


def _announced(configuration: Configuration, backbone: Backbone) -> str:
    return f"{configuration.name}: {configuration.sampler.evaluations(backbone)} evaluations"


def _header(run: Run, extractor: Extractor) -> dict[str, Any]:
    settings = run.recipe.evaluate
    return {
        "prompts": {"file": settings.prompts, "count": len(extractor.prompts)},
        "repeats": list(extractor.repeated),
        "seed": settings.seed,
        "features": settings.features,
        "truth": settings.truth,
        "hardware": hardware.describe(),
    }


def _score(
    evaluation: dict[str, Any],
    measurements: list[Measurements],
    extractor: Extractor,
    scores: list[Score],
) -> None:
    """Adds `scores` to every configuration, and a row of real pictures where there are some."""
    rows = evaluation["configurations"]
    teachers = [i for i, row in enumerate(rows) if row["model"] == "teacher"]
    named: dict[str, Measurements] = {}
    if teachers:
        reference = max(teachers, key=lambda i: rows[i]["evaluations"])
        named["teacher"] = measurements[reference]
        evaluation["reference"] = rows[reference]["name"]
    if extractor.truth:
        named["real"] = extractor.read_real(_REAL_SEED)
    for row, reading in zip(rows, measurements, strict=True):
        row["scores"] = _figures(
            scores, reading, References(named, _baseline(row, rows, measurements))
        )
    if extractor.truth:
        floor = extractor.read_real(_FLOOR_SEED)
        evaluation["real"] = {"scores": _figures(scores, floor, References(named))}


def _baseline(
    configuration: dict[str, Any], rows: list[dict[str, Any]], measurements: list[Measurements]
) -> Measurements | None:
    """The guided teacher at as many steps as a student, if it was drawn; None for a teacher."""
    if configuration["model"] != "student":
        return None
    pairs = zip(rows, measurements, strict=True)
    return next(
        (reading for row, reading in pairs if is_baseline(row, configuration["steps"])), None
    )


def _figures(
    scores: list[Score], configuration: Measurements, references: References
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for score in scores:
        figures |= score(configuration, references)
    return {name: round(value, 6) for name, value in figures.items()}


def make_extractor(settings: EvaluateRecipe) -> Extractor:
    """What to draw and how to read it, as the recipe wants it.

    Raises:
        FewstepError: No prompts to evaluate on, or prompts outside the truth's grammar.
    """
    if settings.prompts is None:
        raise FewstepError(
            "evaluate.prompts is not set: name a file with prompts, one per line",
            code="missing-input",
        )
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
    return Extractor(prompts, repeated, settings.seed, space, judge, settings.batch)


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
                f"evaluate.scores: {score.name!r} needs a ground truth: set evaluate.truth",
                code="missing-input",
            )
    return scores


def resolve_configurations(
    settings: EvaluateRecipe, run: Run, backbone: Backbone
) -> list[Configuration]:
    """The declared configurations, the model's defaults filled in; the student is unguided."""
    height, width = run.size
    configurations = []
    for declared in settings.configurations:
        guidance = declared.guidance
        if guidance is None:
            guidance = backbone.default_guidance if declared.model == "teacher" else 1.0
        own = run.recipe.grid.shift if declared.model == "student" else None
        shift = declared.shift or own
        sampler = Sampler(
            declared.steps or backbone.default_steps, guidance, height, width, shift=shift
        )
        configurations.append(Configuration(declared.model, sampler, own_shift=shift == own))
    return configurations


def feature_cache(settings: EvaluateRecipe) -> FeatureCache:
    """Where measurements are kept: the user's cache, then whatever came with the model."""
    home = os.environ.get("FEWSTEP_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fewstep"
    )
    shipped = [resolve(settings.measurements)] if settings.measurements else []
    return FeatureCache((Path(home) / "measurements", *shipped))
