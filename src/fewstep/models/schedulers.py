"""What the settings of a diffusers scheduler mean for a student: one table, a row for each class.

A student is always drawn with Euler's method on a grid of our own, so of a model's scheduler only
what describes the model counts: the shift of a flow, or the trained times and what the network
predicts. Solvers differ in much else. `read_settings` sorts every setting of a class:

- *honoured*: read, and repeated by the scheduler that students are given;
- *ignored*: only about how the solver itself walks or spaces its steps;
- all others must have their default, or the value that the row *needs*: they would change the
  grid, the clock or the path. So must settings that a later diffusers adds.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from diffusers import EulerDiscreteScheduler
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewstep.models.shift import FILE, FlowSettings
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_text

_Beta = Annotated[float, Field(gt=0, lt=1)]


class TrainedTimesSettings(BaseModel):
    """The settings of a variance-preserving scheduler that describe the training."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: _Beta = 0.0001
    beta_end: _Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[_Beta] | None = None
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError("trained_betas must have num_train_timesteps values")
        signal = EulerDiscreteScheduler(**self.model_dump()).alphas_cumprod
        if not (signal[:-1].diff() < 0).all() or not 0 < signal[-1] < 1:
            raise ValueError("these betas leave no signal before the last trained time")
        return self


Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Row(Generic[Settings]):
    """How the settings of a class of schedulers are read.

    Attributes:
        settings: What is made of those that are honoured.
        honoured: Their name in the class -> their name in `settings`.
        ignored: Names of those without a part in a student's grid, clock or path.
        needed: Name -> value that it must have, where that is not the default.
    """

    settings: type[Settings]
    honoured: Mapping[str, str]
    ignored: frozenset[str] = frozenset()
    needed: Mapping[str, Any] = field(default_factory=dict)


_BETAS = frozenset(
    {"beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"}
)
_SOLVER = frozenset(
    {
        *("algorithm_type", "solver_type", "solver_order", "solver_p", "lower_order_final"),
        *("predictor_order", "corrector_order", "tau_func", "predict_x0", "disable_corrector"),
        *("euler_at_final", "lambda_min_clipped", "variance_type", "timestep_spacing"),
        *("steps_offset", "dynamic_thresholding_ratio", "sample_max_value"),
    }
)
_FLOW_NAMES = {name: name for name in FlowSettings.model_fields}
_STATIC = Row(FlowSettings, {"shift": "shift"})
_SIZED = frozenset(
    {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"}
)
_FLOW_SIGMAS = Row(
    FlowSettings,
    {"flow_shift": "shift", "shift_terminal": "shift_terminal"},
    ignored=_BETAS | _SOLVER,
    needed={"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
)
_TRAINED = Row(
    TrainedTimesSettings,
    {name: name for name in TrainedTimesSettings.model_fields},
    ignored=_SOLVER
    | {
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
        *("interpolation_type", "final_sigmas_type", "set_alpha_to_one", "skip_prk_steps"),
        *("clip_sample", "clip_sample_range", "original_inference_steps", "timestep_scaling"),
        *("flow_shift", "time_shift_type"),
    },
)

FLOW: dict[str, Row[FlowSettings]] = {
    "FlowMatchEulerDiscreteScheduler": Row(FlowSettings, _FLOW_NAMES),
    "FlowMatchHeunDiscreteScheduler": _STATIC,
    "FlowMapEulerDiscreteScheduler": _STATIC,
    "UniPCMultistepScheduler": _FLOW_SIGMAS,
    "DPMSolverMultistepScheduler": _FLOW_SIGMAS,
    "DPMSolverSinglestepScheduler": _FLOW_SIGMAS,
    "DEISMultistepScheduler": _FLOW_SIGMAS,
    "SASolverScheduler": _FLOW_SIGMAS,
}
"""Schedulers of models that predict a velocity, by the name of their class."""

FLOW_OF_ANY_SIZE = FLOW | {
    "FlowMatchEulerDiscreteScheduler": Row(
        FlowSettings,
        {name: name for name in ("shift", "shift_terminal")},
        ignored=_SIZED,
    )
}
"""The same where the stock pipeline never says how large the picture is: no dynamic shift."""

TRAINED_TIMES: dict[str, Row[TrainedTimesSettings]] = dict.fromkeys(
    (
        *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"),
        *("PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"),
        *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
        *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
        *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"),
        *("UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler", "TCDScheduler"),
    ),
    _TRAINED,
)
"""Schedulers of models that predict eps or v, by the name of their class."""

_ALIASES = {"flow_shift": "shift"}


def read_settings(
    kind: type, config: Mapping[str, Any], table: Mapping[str, Row[Settings]], where: object
) -> Settings:
    """What a scheduler's configuration says of its model.

    Args:
        kind: The scheduler's class.
        config: Its settings; those that are missing have their defaults.
        table: The classes that are understood.
        where: What error messages call the configuration.

    Raises:
        FewstepError: The class is not in the table, or a setting that has a part in the grid, the
            clock or the path is not honoured or means nothing.
    """
    name = kind.__name__
    if name not in table:
        raise FewstepError(
            f"{where}: {name} does not describe a model of this kind; use the scheduler that the "
            f"model was published with, or {next(iter(table))}",
            code="unsupported",
        )
    row, known = table[name], inspect.signature(kind).parameters
    given = {key: config.get(key, parameter.default) for key, parameter in known.items()}
    for key, value in given.items():
        if key in row.honoured or key in row.ignored:
            continue
        wanted = row.needed.get(key, known[key].default)
        if not _same(value, wanted):
            raise FewstepError(
                f"{where}: {key} is {value!r}, which few-step students of a {name} cannot follow; "
                f"set it to {json.dumps(wanted)}",
                code="unsupported",
            )
    honoured = {ours: given[theirs] for theirs, ours in row.honoured.items() if theirs in given}
    settings = _validated(row.settings, honoured, where)
    stray = {
        _ALIASES.get(key, key): value
        for key, value in config.items()
        if key not in known and _ALIASES.get(key, key) in row.settings.model_fields
    }
    if stray and _validated(row.settings, honoured | stray, where) != settings:
        raise FewstepError(
            f"{where}: {', '.join(sorted(stray))}: no setting of {name}, which would go on without;"
            " remove it, or name the scheduler that it belongs to",
            code="unsupported",
        )
    return settings


def check_scheduler(folder: Path, table: Mapping[str, Row[Any]]) -> Any:
    """The settings of the scheduler in a pipeline's folder, see `read_settings`.

    Reads the configuration alone.

    Raises:
        FewstepError: As `read_settings`; or it is missing, damaged, of another class than the
            pipeline's index says, or not to diffusers' liking.
    """
    file = folder / FILE
    index, config = _object(folder / "model_index.json"), _object(file)
    entry = index.get("scheduler")
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, entry)
    kind: Any = getattr(sys.modules.get(str(library)), str(name), None)
    if not inspect.isclass(kind):
        raise FewstepError(
            f"{folder / 'model_index.json'}: scheduler is {name}, which is not installed or is not "
            "one; name the class that the model was published with",
            code="unsupported",
        )
    written = config.get("_class_name", name)
    if written != name and table.get(str(written)) is not table.get(str(name)):
        raise FewstepError(
            f"{file}: of a {written}, but model_index.json names a {name}; make them agree",
            code="mismatch",
        )
    settings = read_settings(kind, config, table, file)
    try:
        scheduler: Any = kind
        scheduler.from_config(config)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FewstepError(f"{file}: not a usable {name}: {reason}", code="damaged") from error
    return settings


def _validated(settings: type[Settings], values: Mapping[str, Any], where: object) -> Settings:
    try:
        return settings.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        said = f"{key} is {problem['input']!r}: " if key else ""
        raise FewstepError(
            f"{where}: {said}{problem['msg'].lower()}; correct it", code="unsupported"
        ) from error


def _same(value: Any, wanted: Any) -> bool:
    """Equal, and no truth value or real number for an integer."""
    return (
        value == wanted
        and isinstance(value, bool) == isinstance(wanted, bool)
        and not (isinstance(value, float) and isinstance(wanted, int))
    )


def _object(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"{file}: not readable: {error}", code="damaged") from error
    if not isinstance(content, dict):
        raise FewstepError(f"{file}: not a JSON object", code="damaged")
    return content
