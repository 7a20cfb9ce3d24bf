"""Questions to the two teachers: gathered first, so that those of one network can share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from fewstep.core.flow import x0_from_velocity
from fewstep.core.types import Conditioning, VelocityFn


class Ask(Protocol):
    """The three networks an objective may ask, each a velocity field (see `VelocityFn`)."""

    @property
    def student(self) -> VelocityFn:
        """Trained; asked with gradients."""

    @property
    def teacher(self) -> VelocityFn:
        """Frozen pretrained network."""

    @property
    def fake_teacher(self) -> VelocityFn:
        """Model of what the student now generates."""


Teacher: TypeAlias = Literal["teacher", "fake_teacher"]
"""Either of the two, as attributes of `Ask`."""


@dataclass(frozen=True, eq=False)
class Question:
    """Where one of the teachers is to be asked.

    Attributes:
        teacher: Which one.
        xt: Noisy latent, [B, ...].
        sigma: Its noise level, [B].
        cond: Prompts, batch B.
    """

    teacher: Teacher
    xt: Tensor
    sigma: Tensor
    cond: Conditioning

    @property
    def _kind(self) -> tuple[object, ...]:
        """Equal for questions that fit into one batch."""
        shapes = ((name, tensor.shape[1:]) for name, tensor in self.cond.tensors.items())
        return self.teacher, self.xt.shape[1:], frozenset(shapes)


@dataclass(frozen=True, eq=False)
class Reply:
    """What a teacher said to a question, outside the graph.

    Attributes:
        velocity: Its velocity there, [B, ...].
        x0: The clean latent it points at, [B, ...].
    """

    velocity: Tensor
    x0: Tensor


@torch.no_grad()
def reply_to(ask: Ask, questions: Sequence[Question], *, together: bool = False) -> list[Reply]:
    """Replies to questions, in their order.

    Args:
        ask: The three networks; the student is left alone.
        questions: What to ask.
        together: One call for all questions of a teacher that fit into one batch; else one each.
    """
    if together:
        kinds: dict[tuple[object, ...], list[Question]] = {}
        for question in questions:
            kinds.setdefault(question._kind, []).append(question)
        groups = list(kinds.values())
    else:
        groups = [[question] for question in questions]
    velocities: dict[Question, Tensor] = {}
    for group in groups:
        sizes = [len(question.sigma) for question in group]
        velocities |= zip(group, _velocity(ask, group).split(sizes), strict=True)
    return [
        Reply(velocities[each], x0_from_velocity(each.xt, velocities[each], each.sigma))
        for each in questions
    ]


def _velocity(ask: Ask, group: Sequence[Question]) -> Tensor:
    """What the group's teacher says to all of its questions, one batch after the other."""
    velocity = {"teacher": ask.teacher, "fake_teacher": ask.fake_teacher}[group[0].teacher]
    if len(group) == 1:
        return velocity(group[0].xt, group[0].sigma, group[0].cond)
    xt, sigma = (torch.cat(parts) for parts in ([q.xt for q in group], [q.sigma for q in group]))
    return velocity(xt, sigma, Conditioning.cat([question.cond for question in group]))
