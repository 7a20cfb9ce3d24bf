"""The grids of a model family, and the scheduler with which the stock pipeline walks them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fewstep.core.schedules import Grid, Shift, StaticShift, Terminal, with_terminal
from fewstep.models.schedulers import FLOW, Row, read_settings
from fewstep.models.shift import FILE


class Scheduled(ABC):
    """A pipeline's grids.

    Attributes:
        pipe: The pipeline.
        source: The folder that it was loaded from.
        schedulers: How the settings of schedulers are read, by class.
    """

    pipe: Any
    source: Path
    schedulers: ClassVar[Mapping[str, Row[Any]]] = FLOW

    @abstractmethod
    def image_tokens(self, height: int, width: int) -> int:
        """Image tokens after patching, on which dynamic shifting depends."""

    @property
    def scheduler_settings(self) -> Any:
        """What the pipeline's scheduler says of the model: of a flow, its `FlowSettings`.

        Raises:
            FewstepError: It says something that students cannot follow.
        """
        scheduler = self.pipe.scheduler
        where = Path(self.source) / FILE
        return read_settings(type(scheduler), scheduler.config, self.schedulers, where)

    def shift(self, height: int, width: int) -> Shift:
        """The model's shift of base sigmas at that size in pixels, from its scheduler, Eq. 12."""
        shift: Shift = self.scheduler_settings.at(self.image_tokens(height, width))
        return shift

    def effective_shift(
        self, value: float | None, height: int, width: int, *, terminal: Terminal = "model"
    ) -> Shift:
        """The shift of the student's grid: what it has of its own, else the model's.

        `student_scheduler` makes the stock pipeline do the same.

        Args:
            value: A static shift of its own; None is the model's.
            height: In pixels.
            width: In pixels.
            terminal: An end of its own; "model" is that of the model's shift.

        Raises:
            FewstepError: The family's schedulers have no such thing to set.
        """
        shift = self.shift(height, width) if value is None else StaticShift(value)
        return with_terminal(shift, terminal)

    def student_shift(self, grid: Grid, height: int, width: int) -> Shift:
        """`effective_shift` of a recipe's grid."""
        return self.effective_shift(grid.shift, height, width, terminal=grid.terminal)

    def grid_notes(self, grid: Grid, height: int, width: int) -> tuple[str, ...]:
        """What whoever trains on a recipe's grid should know of it, a line each."""
        terminal = getattr(self.student_shift(grid, height, width), "terminal", None)
        if terminal is None or grid.terminal != "model":
            return ()
        return (
            f"the model's scheduler ends every grid at {terminal:g} (shift_terminal): the last "
            "evaluation has little noise left to remove; grid.terminal: null leaves that end out",
        )

    def student_scheduler(self, shift: float | None = None, terminal: Terminal = "model") -> Any:
        """The scheduler that a student needs in the stock pipeline, and nothing else in it.

        Args:
            shift: The static shift of the student's own grid; None is the model's.
            terminal: The end of its own grid; "model" is that of the model's shift.
        """
        return self.scheduler_settings.for_student(shift, terminal).scheduler()

    def needs_scheduler(self, wanted: Any) -> bool:
        """Whether the pipeline's own scheduler does not do what one for a student does."""
        if type(wanted) is not type(self.pipe.scheduler):
            return True
        settings = read_settings(type(wanted), wanted.config, self.schedulers, FILE)
        return bool(settings != self.scheduler_settings)
