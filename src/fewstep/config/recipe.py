"""The whole recipe of a run, read strictly from YAML or Python values and written back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError, to_json

from fewstep.config import shipped
from fewstep.config.criteria import CriterionRecipe
from fewstep.config.data import BUILTIN, DataRecipe, is_repo_id
from fewstep.config.evaluate import EvaluateRecipe
from fewstep.config.files import located, merged, read_files
from fewstep.config.memory import MemoryRecipe
from fewstep.config.migrate import migrated, refuse_old
from fewstep.config.model import ModelRecipe, ResolutionRecipe
from fewstep.config.monitor import CheckpointRecipe, HealthRecipe, LogRecipe, PreviewRecipe
from fewstep.config.parallel import ParallelRecipe
from fewstep.config.strict import (
    ConfigError,
    Section,
    explain,
    parse_override,
    refuse_odd_characters,
    set_value,
)
from fewstep.config.training import (
    EmaRecipe,
    FakeTeacherRecipe,
    ObjectiveRecipe,
    StudentRecipe,
    TrainRecipe,
)
from fewstep.core.schedules import Grid, RandomGrid
from fewstep.utils import yaml
from fewstep.utils.errors import all_at_once
from fewstep.utils.resources import resolve
from fewstep.utils.terminal import one_line

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""Dotted keys with their values, or texts such as ``train.steps=500`` whose values are YAML."""

Checked = TypeVar("Checked", bound=Section)


class Recipe(Section):
    """Everything a run depends on."""

    model: ModelRecipe
    data: DataRecipe
    resolution: ResolutionRecipe
    grid: Grid = RandomGrid()
    """Noise levels that the student is simulated at in training, Eq. 10."""
    objectives: Annotated[tuple[ObjectiveRecipe, ...], Field(min_length=1)]
    """The terms of the student's loss, each once: a name and its settings."""
    fake_teacher: FakeTeacherRecipe = FakeTeacherRecipe()
    student: StudentRecipe = StudentRecipe()
    ema: EmaRecipe | None = EmaRecipe()
    train: TrainRecipe
    parallel: ParallelRecipe = ParallelRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    preview: PreviewRecipe = PreviewRecipe()
    health: HealthRecipe = HealthRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    criteria: tuple[CriterionRecipe, ...] = ()
    """What the run has to reach, for recipes that are a benchmark; empty: figures, no verdict."""
    card: dict[str, str] = Field(default_factory=dict)
    """Header of the exported model card, such as `license` and `base_model`."""
    log: LogRecipe = LogRecipe()
    memory: MemoryRecipe = MemoryRecipe()

    @classmethod
    def named(cls, name: str | Path, overrides: Overrides = ()) -> Self:
        """A recipe that ships with fewstep, by name, or one in a YAML file, by path.

        Args:
            name: Such as ``sd3-medium-lora``, or a path.
            overrides: Changes, by dotted key: ``{"train.steps": 500}`` or ``["train.steps=500"]``.

        Raises:
            FewstepError: There is no such recipe, or it is wrong; one line says what and where.
        """
        return cls.from_file(shipped.find(name), overrides)

    @classmethod
    def from_file(cls, path: str | Path, overrides: Overrides = ()) -> Self:
        """The recipe in a YAML file, and in those that it extends.

        Args:
            path: The file, or ``package://...``.
            overrides: Changes, as in `named`.

        Raises:
            ConfigError: One line that says what is wrong, and in which file and line.
        """
        files = read_files(path)
        try:
            return cls.from_values(merged(files), overrides)
        except ConfigError as error:
            given = (each.partition("=")[0] for each in overrides)
            raise located(error, files, given) from error

    @classmethod
    def from_values(cls, data: Mapping[str, Any], overrides: Overrides = ()) -> Self:
        """The recipe that nested plain values make, as a YAML file would hold them.

        Raises:
            ConfigError: One line that says what is wrong and where.
        """
        plain = _plain(data)
        with all_at_once(ConfigError) as part:
            for override in overrides.items() if isinstance(overrides, Mapping) else overrides:
                with part():
                    pair = parse_override(override) if isinstance(override, str) else override
                    set_value(plain, pair[0], _plain(pair[1], pair[0]), cls)
            with part():
                refuse_odd_characters(plain)
            with part():
                refuse_old(plain)
            with part():
                recipe = _validated(cls, plain)
        return recipe

    @classmethod
    def from_saved(cls, data: Mapping[str, Any], overrides: Overrides = ()) -> Self:
        """The recipe that a run folder or a checkpoint holds, perhaps of an older version.

        Raises:
            ConfigError: It says something that no setting says any more.
        """
        return cls.from_values(migrated(data), overrides)

    @classmethod
    def of_run(cls, folder: Path, overrides: Overrides = ()) -> Self:
        """The recipe of a run folder.

        Raises:
            ConfigError: It cannot be read, or is wrong; one line says what and where.
        """
        files = read_files(folder / shipped.CONFIG)
        try:
            return cls.from_saved(merged(files), overrides)
        except ConfigError as error:
            raise ConfigError(f"{files[0].path}: {error}", code=error.code) from error

    def to_yaml(self) -> str:
        """YAML text, defaults written out; `from_file` gives the same recipe back."""
        return yaml.dump(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for section, members in (
            ("objectives", self.objectives),
            ("criteria", self.criteria),
            ("log.sinks", self.log.sinks),
        ):
            names = [member.name for member in members]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{section} lists {name!r} twice")
        optimizers = [section.optimizer.name for section in (self.student, self.fake_teacher)]
        checkpointing = self.student.gradient_checkpointing
        misfit = self.memory.misfit(self.student.mode, self.model.dtype, checkpointing, optimizers)
        if misfit:
            raise ValueError(misfit)
        if self.train.early_stop is not None and not self.checkpoint.keep_best:
            raise ValueError(
                "train.early_stop keeps the best checkpoint: set checkpoint.keep_best to 1 or more"
            )
        if self.train.steps < self.student.every:
            raise ValueError(
                f"train.steps ({self.train.steps}) is below student.every ({self.student.every}): "
                "the student would never move"
            )
        return self


def missing_files(recipe: Recipe) -> dict[str, str]:
    """Files and folders that a recipe names beside its model and that are not there, by key."""
    init = recipe.student.init
    sources = {
        "data.prompts": recipe.data.prompts,
        "preview.prompts": recipe.preview.prompts,
        "evaluate.prompts": recipe.evaluate.prompts,
        "student.init": init.path if init else None,
        "student.init.relative_to": init.relative_to if init else None,
    }
    return {
        key: source
        for key, source in sources.items()
        if isinstance(source, str)
        and not source.startswith(BUILTIN)
        and not (os.path.lexists(resolve(source)) or is_repo_id(source))
    }


def _plain(value: Any, place: str = "recipe") -> Any:
    """A value as JSON holds it: records, tuples and paths become mappings, lists and texts."""
    try:
        return json.loads(to_json(value, inf_nan_mode="constants"))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not a plain value: {one_line(str(error))}") from error


def _validated(kind: type[Checked], plain: dict[str, Any]) -> Checked:
    """The recipe of plain values."""
    try:
        # JSON's strictness is the wanted one: lists become tuples, but "3" is not a number.
        return kind.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        raise explain(error, kind) from error
