"""Evaluating a run: every configuration is drawn, measured and compared."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.config import EvaluateRecipe, Recipe
from fewstep.data.prompts import read_prompts
from fewstep.evaluation import features, metrics, references
from fewstep.evaluation.cache import FeatureCache, save_measurements
from fewstep.evaluation.configurations import Configuration, is_baseline, resolve_configurations
from fewstep.evaluation.extractor import Extractor
from fewstep.evaluation.metrics.base import Measurements, Metric, References
from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import sample_batch, to_pixels
from fewstep.models.base import Backbone
from fewstep.utils import hardware
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_model, digest_text, write_json
from fewstep.utils.resources import resolve

Say = Callable[[str], None]
_REAL_SEED, _OTHER_SEED = 71, 73  # real pictures, and others that show how good a figure can get


def evaluate_run(
    run_folder: str | Path, *, which: str = "best", say: Say = lambda text: None
) -> dict[str, Any]:
    """Evaluates the recipe's configurations; writes evaluation.json and a gallery.

    One network is held in memory: the teacher's configurations come first, then the student's
    weights take the teacher's place. The teacher's measurements are kept under a key of all that
    they depend on, so that the next evaluation need not draw them again.

    Args:
        run_folder: A run with at least one checkpoint.
        which: The student's checkpoint, `best` or `last`.
        say: Called with a line on what is being done.

    Returns:
        What evaluation.json holds.

    Raises:
        FewstepError: No prompts, an unknown metric, or one that cannot measure these prompts.
    """
    began = time.monotonic()
    run = RunFolder.open(run_folder)
    settings = run.recipe.evaluate
    extractor = make_extractor(settings)
    real = _real_pictures(settings, extractor, run)
    backbone = run.load_backbone()
    work = _Work(backbone, extractor, feature_cache(settings), run.folder / "evaluation", say)
    configurations = resolve_configurations(settings, run, backbone)
    fingerprint = digest_model(backbone.source)
    measured = [
        work.measure(configuration, backbone.net, settings.gallery, fingerprint)
        for configuration in configurations
        if configuration.model == "teacher"
    ]
    student = run.load_student(backbone, which)
    measured += [
        work.measure(configuration, student.net, settings.gallery)
        for configuration in configurations
        if configuration.model == "student"
    ]
    say("metrics")
    evaluation = {
        "prompts": {"file": settings.prompts, "count": len(extractor.prompts)},
        "repeats": list(extractor.repeated),
        "seed": settings.seed,
        "features": settings.features if extractor.features else None,
        "references": settings.references,
        "metrics": [
            {"name": metric.name, "licence": metric.licence, **metric.model_dump()}
            for metric in extractor.metrics
        ],
        "hardware": hardware.describe(),
        "which": which,
        "step": student.step,
        **_compare(measured, real, extractor.metrics),
    }
    evaluation["seconds"] = round(time.monotonic() - began, 1)
    write_json(run.folder / "evaluation.json", evaluation)
    return evaluation


def measure_teacher(
    recipe: Recipe, folder: Path, *, say: Say = lambda text: None
) -> dict[str, Path]:
    """Draws a recipe's teacher configurations and writes their measurements to a folder.

    A recipe that names the folder as `evaluate.cache` is then evaluated without drawing the
    teacher, for as long as model, prompts, feature space and metrics stay as they are. Values are
    in half precision; date and hardware are kept beside them.

    Args:
        recipe: Any recipe of the model; nothing is trained.
        folder: Where to.
        say: Called with a line on what is being done.

    Returns:
        The file of each configuration.
    """
    run, extractor = RunFolder(folder, recipe), make_extractor(recipe.evaluate)
    backbone = run.load_backbone()
    work = _Work(backbone, extractor, feature_cache(recipe.evaluate), folder, say)
    files = {}
    for configuration in resolve_configurations(recipe.evaluate, run, backbone):
        if configuration.model == "teacher":
            key = work.key(configuration, backbone.net, digest_model(backbone.source) or "")
            say(f"{configuration.name}: {configuration.sampler.evaluations(backbone)} evaluations")
            drawn = extractor.read(backbone, backbone.net, configuration.sampler)
            files[configuration.name] = folder / f"{key}.safetensors"
            facts = {"configuration": configuration.name, "seed": extractor.seed}
            save_measurements(files[configuration.name], drawn, compact=True, **facts)
    return files


def make_extractor(settings: EvaluateRecipe) -> Extractor:
    """What to draw and what to measure, as the recipe wants it; metrics are ready to measure.

    Raises:
        FewstepError: No prompts, an unknown metric, or one that cannot measure these prompts.
    """
    if settings.prompts is None:
        raise FewstepError(
            "evaluate.prompts is not set: name a file with prompts, one per line",
            code="missing-input",
        )
    prompts = read_prompts(settings.prompts).distinct[: settings.count]
    chosen = metrics.build(settings.metrics)
    for metric in chosen:
        try:
            metric.prepare(prompts)
        except ImportError as error:
            raise FewstepError(
                f"evaluate.metrics: {metric.name}: {error}; pip install '{metric.extra}'",
                code="missing-dependency",
            ) from error
    needed = any(metric.needs_features for metric in chosen)
    space = features.load(settings.features) if needed else None
    count, times = settings.repeats
    repeated = (min(count, len(prompts)), times)
    return Extractor(prompts, repeated, settings.seed, space, chosen, settings.batch)


def feature_cache(settings: EvaluateRecipe) -> FeatureCache:
    """The user's cache of measurements, and what came with the model."""
    home = os.environ.get("FEWSTEP_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fewstep"
    )
    shipped = resolve(settings.cache) if settings.cache else None
    return FeatureCache(Path(home) / "measurements", shipped)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A configuration's row of evaluation.json, and its measurements."""

    row: dict[str, Any]
    measurements: Measurements


@dataclass(frozen=True, eq=False)
class _Work:
    """What one evaluation does to each of its configurations."""

    backbone: Backbone
    extractor: Extractor
    cache: FeatureCache
    folder: Path
    say: Say

    def measure(
        self, configuration: Configuration, net: nn.Module, gallery: int, model: str | None = None
    ) -> _Measured:
        """Draws and measures a configuration, or finds its measurements.

        Args:
            configuration: Which.
            net: Its network.
            gallery: Prompts drawn for the report; this also tells the seconds per picture.
            model: Fingerprint under which measurements are looked for and kept; None: neither.
        """
        key = None if model is None else self.key(configuration, net, model)
        kept = self.cache.find(key) if key else None
        row = configuration.describe(self.backbone)
        source = f"measured on {kept.made['date']}" if kept else f"{row['evaluations']} evaluations"
        self.say(f"{configuration.name}: {source}")
        row |= self._draw_gallery(configuration, net, gallery)
        if kept:
            return _Measured(row | {"measured": kept.made}, kept.measurements)
        drawn = self.extractor.read(self.backbone, net, configuration.sampler)
        if key:
            self.cache.keep(key, drawn)
        return _Measured(row | {"measured": {"where": "now"}}, drawn)

    def key(self, configuration: Configuration, net: nn.Module, model: str) -> str:
        """Fingerprint of all that a configuration's measurements depend on."""
        size = configuration.sampler.size(self.backbone)
        options = self.backbone.stock_call(configuration.sampler.base_sigmas, *size)
        call = f"{options} {next(net.parameters()).dtype}"
        return digest_text(model, call, repr(configuration.sampler), self.extractor.key)

    def _draw_gallery(
        self, configuration: Configuration, net: nn.Module, count: int
    ) -> dict[str, Any]:
        prompts = list(self.extractor.prompts[:count])
        seeds = range(self.extractor.seed, self.extractor.seed + len(prompts))
        began = time.perf_counter()
        images = sample_batch(self.backbone, net, prompts, seeds, sampler=configuration.sampler)
        seconds = (time.perf_counter() - began) / len(prompts)
        slug = configuration.name.replace("@", "-").replace(" ", "-")
        self._write(slug, prompts, images)
        return {
            "seconds_per_image": round(seconds, 5),
            "gallery": [f"evaluation/{slug}/{i:03}.png" for i in range(len(prompts))],
        }

    def _write(self, slug: str, prompts: list[str], images: Tensor) -> None:
        folder = self.folder / slug
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, image in enumerate(images):
            to_pixels(image).save(folder / f"{index:03}.png")
        write_json(self.folder / "gallery.json", {"prompts": prompts, "seed": self.extractor.seed})


def _real_pictures(
    settings: EvaluateRecipe, extractor: Extractor, run: RunFolder
) -> list[Measurements]:
    """Measurements of real pictures and, of a paired source, of as many others; none without."""
    if settings.references is None:
        return []
    source = references.load(settings.references)
    seeds = (_REAL_SEED, _OTHER_SEED) if source.paired else (_REAL_SEED,)
    return [extractor.read_real(source, seed, run.size) for seed in seeds]


def _compare(
    measured: Sequence[_Measured], real: Sequence[Measurements], chosen: Sequence[Metric]
) -> dict[str, Any]:
    """Rows with their figures, the reference's name, figures of real pictures, and columns."""
    named: dict[str, Measurements] = {}
    found: dict[str, Any] = {}
    teachers = [one for one in measured if one.row["model"] == "teacher"]
    if teachers:
        best = max(teachers, key=lambda one: one.row["evaluations"])
        named["teacher"], found["reference"] = best.measurements, best.row["name"]
    if real:
        named["real"] = real[0]
    shown: list[dict[str, Any]] = [{} for _ in chosen]
    for one in measured:
        baselines = [other.measurements for other in measured if is_baseline(other.row, one.row)]
        compared = References(named, baselines[0] if baselines else None)
        one.row["figures"] = _figures(chosen, one.measurements, compared, shown)
    found["configurations"] = [one.row for one in measured]
    if len(real) > 1:
        found["real"] = {"figures": _figures(chosen, real[1], References(named), shown)}
    columns: dict[str, Any] = {}
    for metric, figures in zip(chosen, shown, strict=True):
        columns |= {name: figures[name] for name in metric.figures or figures if name in figures}
    return found | {"columns": columns}


def _figures(
    chosen: Sequence[Metric],
    measurements: Measurements,
    compared: References,
    shown: Sequence[dict[str, Any]],
) -> dict[str, float]:
    """Finite figures of one configuration; how each metric's are shown goes to `shown`."""
    figures: dict[str, float] = {}
    for metric, columns in zip(chosen, shown, strict=True):
        found = metric(measurements, compared)
        figures |= found
        described = ((name, metric.describe(name)) for name in found)
        columns |= {name: asdict(figure) for name, figure in described if figure}
    return {name: round(value, 6) for name, value in figures.items() if math.isfinite(value)}
