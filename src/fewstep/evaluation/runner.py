"""Evaluating a run: every configuration is drawn, measured and compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from fewstep import models
from fewstep.config import EvaluateRecipe, Recipe
from fewstep.data.prompts import read_prompts
from fewstep.evaluation import features, metrics, references
from fewstep.evaluation.cache import FeatureCache, save_measurements
from fewstep.evaluation.extractor import Configuration, Extractor, configurations_of, is_baseline
from fewstep.evaluation.metrics.base import Measurements, Metric, References
from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import sample_batch, to_pixels
from fewstep.inference.source import Offload, Source
from fewstep.models.base import Backbone
from fewstep.utils import hardware
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import check_writable, replacing, write_json
from fewstep.utils.resources import expand

Say: TypeAlias = Callable[[str], None]
_Measured: TypeAlias = tuple[dict[str, Any], Measurements]  # row of evaluation.json, and values
_REAL_SEED, _OTHER_SEED = 71, 73  # real pictures, and others that show how good a figure can get


def evaluate_run(
    run_folder: str | Path,
    *,
    which: str = "best",
    model: str | None = None,
    dtype: str = "auto",
    offload: Offload | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Evaluates the recipe's configurations; writes evaluation.json and a gallery.

    All prompts are encoded first. Then one network is held in memory, as the run's recipe says
    (dtype, base): the teacher's configurations come first, then the student's weights take the
    teacher's place. The teacher's measurements are kept under a key of all that
    they depend on, so that the next evaluation need not draw them again.

    Args:
        run_folder: A run with at least one checkpoint.
        which: The student's checkpoint, `best` or `last`.
        model: Where the run's model is now; None: where its recipe says.
        dtype: Name of the torch dtype to hold weights in; `auto` is the run's.
        offload: See `inference.source.Source`.
        say: Called with a line on what is being done.

    Returns:
        What evaluation.json holds.

    Raises:
        FewstepError: No prompts, an unknown metric, or one that cannot measure these prompts.
    """
    began = time.monotonic()
    run = RunFolder.open(run_folder, model)
    settings, extractor = run.recipe.evaluate, make_extractor(run.recipe.evaluate)
    check_writable(run.folder)
    real = _real_pictures(settings, extractor, run)
    run.student_weights(which)  # first: the teacher takes long
    source = run.source(dtype=dtype, offload=offload)
    backbone = extractor.load(source, spill=run.folder)
    work = _Work(backbone, extractor, run, say)
    measured = [
        work.measure(configuration, backbone.net, _fingerprint(source))
        for configuration in configurations_of("teacher", run, backbone)
    ]
    students = configurations_of("student", run, backbone)
    student = run.load_student(backbone, which)
    measured += [work.measure(configuration, student.net) for configuration in students]
    say("metrics")
    evaluation = {
        **_describe(settings, extractor),
        "which": which,
        "step": student.step,
        "dtype": source.dtype,
        "base": source.base,
        **_compare(measured, real, extractor.metrics),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(run.folder / "evaluation.json", evaluation)
    return evaluation


def _describe(settings: EvaluateRecipe, extractor: Extractor) -> dict[str, Any]:
    """What evaluation.json says of what is drawn and measured, and where."""
    return {
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
    }


def measure_teacher(
    recipe: Recipe,
    folder: Path,
    *,
    dtype: str = "auto",
    offload: Offload | None = None,
    say: Say = lambda text: None,
) -> dict[str, Path]:
    """Draws a recipe's teacher configurations and writes their measurements to a folder.

    A recipe that names the folder as `evaluate.cache` is then evaluated without drawing the
    teacher, for as long as model, prompts, feature space and metrics stay as they are. Values are
    in half precision; date and hardware are kept beside them.

    Args:
        recipe: Any recipe of the model; nothing is trained.
        folder: Where to.
        dtype: Name of the torch dtype to hold weights in; `auto` is the recipe's.
        offload: See `inference.source.Source`.
        say: Called with a line on what is being done.

    Returns:
        The file of each configuration.
    """
    folder = expand(folder)
    run, extractor = RunFolder(folder, recipe), make_extractor(recipe.evaluate)
    check_writable(folder)
    source = run.source(dtype=dtype, offload=offload)
    backbone = extractor.load(source)
    net, model = backbone.net, _fingerprint(source) or ""
    files = {}
    for configuration in configurations_of("teacher", run, backbone):
        name, sampler = configuration.name, configuration.sampler
        say(f"{name}: {sampler.evaluations(backbone)} evaluations")
        key = extractor.cache_key(backbone, net, sampler, model)
        files[name] = folder / f"{key}.safetensors"
        measurements = extractor.read(backbone, net, sampler)
        facts = {"configuration": name, "seed": extractor.seed}
        save_measurements(files[name], measurements, compact=True, **facts)
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


@dataclass(frozen=True, eq=False)
class _Work:
    """What one evaluation does to each of its configurations."""

    backbone: Backbone
    extractor: Extractor
    run: RunFolder
    say: Say

    def measure(
        self, configuration: Configuration, net: nn.Module, model: str | None = None
    ) -> _Measured:
        """Draws and measures a configuration, or finds its measurements.

        Args:
            configuration: Which.
            net: Its network.
            model: Fingerprint under which measurements are looked for and kept; None: neither.
        """
        cache = FeatureCache.of(self.run.recipe.evaluate)
        network = self.backbone, net, configuration.sampler
        key = self.extractor.cache_key(*network, model) if model else None
        cached = cache.find(key) if key else None
        row = configuration.describe(self.backbone)
        evaluations = f"{row['evaluations']} evaluations"
        told = f"measured on {cached[1]['date']}" if cached else evaluations
        self.say(f"{configuration.name}: {told}")
        row |= self._draw_gallery(configuration, net)
        if cached:
            return row | {"measured": cached[1]}, cached[0]
        measurements = self.extractor.read(*network)
        if key:
            cache.keep(key, measurements)
        return row | {"measured": {"where": "now"}}, measurements

    def _draw_gallery(self, configuration: Configuration, net: nn.Module) -> dict[str, Any]:
        """Draws the report's pictures, which also tells the seconds for each."""
        seed = self.extractor.seed
        prompts = list(self.extractor.prompts[: self.run.recipe.evaluate.gallery])
        seeds = range(seed, seed + len(prompts))
        began = time.perf_counter()
        images = sample_batch(self.backbone, net, prompts, seeds, sampler=configuration.sampler)
        seconds = (time.perf_counter() - began) / len(prompts)
        folder = Path("evaluation", configuration.name.replace("@", "-").replace(" ", "-"))
        files = [(folder / f"{index:03}.png").as_posix() for index in range(len(prompts))]
        with replacing(self.run.folder / folder) as temporary:
            temporary.mkdir()
            for file, image in zip(files, images, strict=True):
                to_pixels(image).save(temporary / Path(file).name)
        shown = {"prompts": prompts, "seed": seed}
        write_json(self.run.folder / "evaluation" / "gallery.json", shown)
        return {"seconds_per_image": round(seconds, 5), "gallery": files}


def _fingerprint(source: Source) -> str | None:
    """That of the network's weights: of the model's files, and of how they are quantized."""
    digest = models.fingerprint(source.address)
    return f"{digest} in {source.base}" if digest and source.base else digest


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
    result: dict[str, Any] = {}
    teachers = [one for one in measured if one[0]["model"] == "teacher"]
    if teachers:
        best, named["teacher"] = max(teachers, key=lambda one: one[0]["evaluations"])
        result["reference"] = best["name"]
    if real:
        named["real"] = real[0]
    shown: list[dict[str, Any]] = [{} for _ in chosen]  # by metric: how each figure is shown

    def figures(measurements: Measurements, baseline: Measurements | None) -> dict[str, float]:
        found: dict[str, float] = {}
        for metric, columns in zip(chosen, shown, strict=True):
            own = metric(measurements, References(named, baseline))
            found |= own
            described = {name: metric.describe(name) for name in own}
            columns |= {name: asdict(how) for name, how in described.items() if how}
        return {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}

    for row, measurements in measured:
        baselines = [other for candidate, other in measured if is_baseline(candidate, row)]
        row["figures"] = figures(measurements, baselines[0] if baselines else None)
    result["configurations"] = [row for row, _ in measured]
    if len(real) > 1:
        result["real"] = {"figures": figures(real[1], None)}
    columns: dict[str, Any] = {}
    for metric, own in zip(chosen, shown, strict=True):
        columns |= {name: own[name] for name in metric.figures or own if name in own}
    return result | {"columns": columns}
