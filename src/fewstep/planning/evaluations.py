"""How often an iteration asks the networks: counted by asking stand-ins that answer nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config import Recipe
from fewstep.core.noise import Draws
from fewstep.core.schedules import Grid, RandomGrid
from fewstep.core.solver import simulate
from fewstep.core.types import Conditioning
from fewstep.objectives import AnchorBatch, Objective, evaluate
from fewstep.objectives.sites import AtAnchor


@dataclass(frozen=True)
class Evaluations:
    """Network evaluations of one iteration, per sample, on average.

    Attributes:
        simulation: Of the student, to reach the anchor.
        fake_teacher: Of the fake teacher, to train it.
        student: Of the student, for the objectives; it moves on every k-th iteration.
        teachers: Of teacher and fake teacher, for the objectives.
        backward: How many of them a gradient flows back through.
    """

    simulation: float
    fake_teacher: float
    student: float
    teachers: float
    backward: float

    @property
    def total(self) -> float:
        """All of them, as a run's metrics count them."""
        return self.simulation + self.fake_teacher + self.student + self.teachers


def count_evaluations(
    recipe: Recipe, objectives: Sequence[Objective], processes: int = 1
) -> Evaluations:
    """Average evaluations of an iteration of a recipe, per sample; previews and health aside."""
    every, updates = recipe.student.every, recipe.fake_teacher.updates
    if recipe.train.step == "plain":
        walked, asked = mean_steps(recipe.grid), _ask_each(objectives)
    else:
        walked, asked = mean_walk(recipe, objectives, processes), ask_once(objectives)
    return Evaluations(
        simulation=walked,
        fake_teacher=float(updates),
        student=asked.student / every,
        teachers=(asked.teacher + asked.fake_teacher) / every,
        backward=updates + asked.with_gradient / every,
    )


def mean_walk(recipe: Recipe, objectives: Sequence[Objective], processes: int) -> float:
    """Average evaluations of the fused step's simulation that serve no other purpose."""
    steps = mean_steps(recipe.grid)
    if "final" in recipe.fake_teacher.target:
        return steps
    whole = recipe.data.parts(processes) == 1 and recipe.train.batch_teachers
    known = whole and any(each.site == AtAnchor() for each in objectives)
    return (steps + 1) / 2 - (1 / recipe.student.every if known else 0)


def mean_steps(grid: Grid) -> float:
    """Average number N of a grid's steps."""
    if isinstance(grid, RandomGrid):
        return (grid.min_steps + grid.max_steps) / 2
    return float(len(grid.sigmas))


@dataclass(eq=False)
class _Counting:
    """Three networks that answer with nothing and count how often they were asked.

    Attributes:
        weight: Where gradients flow to.
        counts: Questions so far, by role, and those with gradients.
    """

    weight: Tensor
    counts: dict[str, int]
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def _answer(self, role: str, xt: Tensor) -> Tensor:
        self.counts[role] = self.counts.get(role, 0) + 1
        if role != "teacher" and torch.is_grad_enabled():
            self.counts["with_gradient"] = self.counts.get("with_gradient", 0) + 1
        return xt * self.weight

    def velocity(self, network: str, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return self._answer(network, xt)

    def capture(self, network: str, blocks: Sequence[int]) -> AbstractContextManager[Any]:
        return nullcontext([(torch.zeros(1, 1),)] * len(blocks))


@dataclass(frozen=True)
class Asked:
    """How often one student update asks each network, and how often with gradients."""

    student: int = 0
    teacher: int = 0
    fake_teacher: int = 0
    with_gradient: int = 0

    def __add__(self, other: Asked) -> Asked:
        """Both."""
        return Asked(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def ask_once(objectives: Sequence[Objective]) -> Asked:
    """What one sample costs in one student update: the objectives run on a latent of one number."""
    networks = _Counting(torch.ones((), requires_grad=True), {})
    cond = Conditioning({"guidance": torch.ones(1)})  # models that take a guidance call it so
    sigmas, index = torch.tensor([1.0, 0.5, 0.0]), torch.zeros(1, dtype=torch.long)
    student = partial(networks.velocity, "student")
    anchor = simulate(student, torch.zeros(1, 1), sigmas, cond).pick(index)
    networks.counts.clear()
    evaluate(objectives, networks, AnchorBatch(anchor, cond, cond, Draws(0, 0), index))
    return Asked(**networks.counts)


def _ask_each(objectives: Sequence[Objective]) -> Asked:
    """As `ask_once`, every objective by itself."""
    return sum((ask_once([objective]) for objective in objectives), Asked())
