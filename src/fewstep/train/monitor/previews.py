"""Previews: pictures of fixed prompts from fixed noise, the student's beside the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from fewstep.config import PreviewRecipe, Recipe
from fewstep.core.schedules import Shift, few_step_sigmas, with_shift
from fewstep.core.solver import sample
from fewstep.core.types import Conditioning, VelocityFn
from fewstep.data.prompts import Encoder
from fewstep.models.base import Backbone
from fewstep.models.latents import pictures_at_once
from fewstep.train.distributed import SINGLE, ProcessGroup
from fewstep.train.memory.offload import vae_on_device
from fewstep.train.monitor.preview_scores import preview_score
from fewstep.train.optim import NonFiniteError
from fewstep.train.roles import Roles
from fewstep.utils.files import digest_text, replacing, write_json
from fewstep.utils.tensors import keep_tensors, kept_tensors

_GAP = 2  # pixels between pictures
_ROWS = 8  # prompts that the picture shows; more are scored only


Attempt: TypeAlias = Callable[..., object]


@dataclass(frozen=True)
class PreviewResult:
    """A preview that was drawn.

    Attributes:
        score: Of the student's pictures at the first number of steps; higher is better. NaN where
            there is none.
        sheet: The picture as it was written; None in processes that do not write.
        fault: What went wrong; empty if nothing did.
    """

    score: float
    sheet: Image.Image | None = None
    fault: str = ""


class Preview:
    """Draws and scores a run's previews; the teacher's half is drawn once.

    Attributes:
        prompts: The prompts that are drawn and scored.
    """

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        folder: Path,
        *,
        prompts: Sequence[str],
        model: str | None = None,
        processes: ProcessGroup = SINGLE,
        attempt: Attempt | None = None,
    ) -> None:
        """Checks the score and draws the noise; no network is called yet.

        Args:
            recipe: The run's recipe.
            backbone: The model.
            folder: The run's ``previews``.
            prompts: What to draw.
            model: Fingerprint of the model, so that another one's pictures are not taken for its.
            processes: All of them draw, since networks may be sharded; the first one writes.
            attempt: Writes a file that a run can do without, see `Logger.attempt`; None: an error
                is raised.
        """
        self._attempt = attempt or (lambda name, write, *arguments: write(*arguments))
        self._processes = processes
        self.prompts = list(prompts)
        self._recipe: PreviewRecipe = recipe.preview
        self._backbone = backbone
        self._identity = f"{recipe.model.model_dump_json()} {model}"
        self._folder = folder
        self._score = preview_score(self._recipe.score)
        size = recipe.resolution.height, recipe.resolution.width
        self._size = size
        self._teacher_shift = backbone.shift(*size)
        self._student_shift = backbone.student_shift(recipe.grid, *size)
        self._chunk = -(-recipe.data.batch_size // recipe.data.accumulate)
        self._noise = backbone.draw_noise(range(len(prompts)), *size)
        self._teacher_steps = self._recipe.teacher.steps or backbone.default_steps
        scale = self._recipe.teacher.guidance
        self._guidance = backbone.default_guidance if scale is None else scale
        self._teacher_images: Tensor | None = None

    def due(self, step: int) -> bool:
        """Whether to draw after a step; step 0, before training, is one of them."""
        return step % self._recipe.every == 0

    @torch.no_grad()
    def draw(self, step: int, roles: Roles, encoder: Encoder) -> PreviewResult:
        """Draws and scores the student, and writes ``step-00000100.png``.

        The picture has a row per prompt: the teacher's, then the student's at each number of steps.
        """
        try:
            teacher = self._teacher(roles, encoder)
            grids = [self._grid(steps, self._student_shift) for steps in self._recipe.steps]
            students = [
                self._sample("student", lambda cond: roles.student, grid, encoder) for grid in grids
            ]
        except NonFiniteError as error:  # in all processes
            return PreviewResult(float("nan"), fault=str(error))
        sheet = None
        if self._processes.first:
            framed = [_framed(images) for images in (teacher, *students)]
            rows = [torch.cat(pictures, dim=2) for pictures in zip(*framed, strict=True)]
            sheet = _picture(torch.cat(rows[:_ROWS], dim=1))
            self._attempt("preview", _write, sheet, self._folder / f"step-{step:08d}.png")
        return PreviewResult(self._scored(students[0], teacher), sheet)

    def _scored(self, student: Tensor, teacher: Tensor) -> float:
        """The score of the first process, for all; NaN where a package's score fails."""
        found = [float("nan")]

        def score() -> None:
            found.append(self._score(student, self.prompts, teacher))

        if self._processes.first:
            self._attempt(f"preview.score {self._recipe.score}", score)
        return self._processes.broadcast_from_first(lambda: found[-1])

    def _teacher(self, roles: Roles, encoder: Encoder) -> Tensor:
        """The teacher's pictures [P, 3, H, W]: from memory, from this run's file, or drawn now."""
        if self._teacher_images is None:
            file = self._folder / f"teacher-{self._key()}.safetensors"
            images = self._kept(file) if self._processes.first else None
            if not self._processes.broadcast_from_first(lambda: images is not None):
                grid = self._grid(self._teacher_steps, self._teacher_shift)
                images = self._sample("teacher", self._guided(roles), grid, encoder)
                if self._processes.first:
                    self._attempt("preview", keep_tensors, file, {"images": images})
                    self._attempt("preview", self._describe)
            # Only the first process looks at them.
            self._teacher_images = torch.empty(0) if images is None else images
        return self._teacher_images

    def _kept(self, file: Path) -> Tensor | None:
        """The teacher's pictures from this run's file; None where it is missing or damaged."""
        tensors, _ = kept_tensors(file) or ({}, {})
        images, (height, width) = tensors.get("images"), self._size
        sound = images is not None and images.shape == (len(self.prompts), 3, height, width)
        return images if sound else None

    def _guided(self, roles: Roles) -> Callable[[Conditioning], VelocityFn]:
        return lambda cond: self._backbone.guided(roles.teacher, cond.batch, self._guidance)

    def _grid(self, steps: int, shift: Shift) -> Tensor:
        """Sigmas of a number of Euler steps, with the final 0, [steps + 1]."""
        return with_shift(torch.tensor(few_step_sigmas(steps)), shift).to(self._backbone.device)

    def _sample(
        self,
        whose: str,
        velocity_for: Callable[[Conditioning], VelocityFn],
        sigmas: Tensor,
        encoder: Encoder,
    ) -> Tensor:
        """Pictures [P, 3, H, W] in [0, 1] on the CPU, drawn in micro-batches.

        Raises:
            NonFiniteError: Some are not finite, here or in another process.
        """
        device = self._backbone.device
        images, fault = [], ""
        for start in range(0, len(self.prompts), self._chunk):
            part = slice(start, start + self._chunk)
            cond = encoder.encode(self.prompts[part])
            latents = sample(velocity_for(cond), self._noise[part].to(device), sigmas, cond)
            with vae_on_device(self._backbone):
                parts = latents.split(pictures_at_once(*self._size))
                decoded = [self._backbone.decode(part).float().cpu() for part in parts]
            images += decoded
            if not all(part.isfinite().all() for part in decoded):
                by = (
                    "the VAE; try model.dtype float32"
                    if latents.isfinite().all()
                    else "the network"
                )
                fault = f"the {whose}'s pictures are not finite: that is {by}; none is shown"
        for each in self._processes.exchange(fault):
            if each:
                raise NonFiniteError(each)
        return torch.cat(images).contiguous()

    def _key(self) -> str:
        settings = (
            self._teacher_steps,
            self._guidance,
            tuple(self._noise.shape),
        )
        return digest_text(self._identity, repr(settings), *self.prompts)

    def _describe(self) -> None:
        columns = [f"teacher, {self._teacher_steps} steps, guidance {self._guidance:g}"]
        columns += [f"student, {steps} steps" for steps in self._recipe.steps]
        content = {"columns": columns, "rows": self.prompts[:_ROWS]}
        write_json(self._folder / "previews.json", content)


def _framed(images: Tensor) -> Tensor:
    """Pictures with a white margin on the right and below."""
    return torch.nn.functional.pad(images, (0, _GAP, 0, _GAP), value=1.0)


def _write(sheet: Image.Image, file: Path) -> None:
    with replacing(file) as temporary:
        sheet.save(temporary, format="PNG")


def _picture(image: Tensor) -> Image.Image:
    """An image [3, H, W] with values in [0, 1] as 8-bit RGB."""
    pixels = (image.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels)
