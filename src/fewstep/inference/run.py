"""`Run`: training whose student can be sampled at any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fewstep.inference.load import Model
from fewstep.train.memory.offload import vae_on_device
from fewstep.train.state import Run as RunState
from fewstep.train.trainer import Trainer
from fewstep.train.watch import averaged_student


class Run(Trainer):
    """A run: a context manager that is iterated, and a student to look at on the way.

        with Run(recipe, "runs/mine", resume=True) as run:
            for step, metrics in run:
                if step % 100 == 0:
                    images = run.student.sample(["a lighthouse at dawn"])

    See `Trainer` for what entering, iterating and leaving do.
    """

    @property
    def student(self) -> Model:
        """The student as it is now: the running mean of its weights, where the run keeps one.

        Where the recipe has prompts encoded ahead, only those of training and of the preview can be
        drawn, as the text encoders are gone.
        """
        run = self.state
        size = self.recipe.resolution.height, self.recipe.resolution.width
        return _StudentInTraining(
            run.backbone,
            run.train_state.roles.student,
            f"{self.folder.name}/step-{run.step:08d}",
            size,
            self.recipe.grid.shift,
            encode=run.encoder.encode,
            terminal=self.recipe.grid.terminal,
            run=run,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _StudentInTraining(Model):
    """A student whose averaged weights are put in force only while it draws."""

    run: RunState

    def sample(self, prompts: str | Sequence[str], **settings: Any) -> list[Image.Image]:
        """Draws one picture for each prompt, see `Model.sample`."""
        with averaged_student(self.run), vae_on_device(self.backbone):
            return super().sample(prompts, **settings)
