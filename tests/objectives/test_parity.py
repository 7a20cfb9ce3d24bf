"""Golden values of the CDM authors' public loss functions (MIT), float32: losses and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.flow import x0_from_velocity
from fewstep.core.noise import Draws
from fewstep.core.types import Anchor, Conditioning
from fewstep.objectives import Context, build, drive, pull_loss
from fewstep.objectives.fake_teacher import denoising_loss

GOLDEN = np.load(Path(__file__).parent.parent / "data" / "objectives.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN.files})
OBJECTIVES = ["ca", "dm"]
RTOL = 1e-6


@dataclass
class Recorded:
    """Networks that answer with recorded velocities; the empty prompt is all zeros."""

    case: str

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(GOLDEN[f"{self.case}/{name}"])

    def conditioning(self, fill: float) -> Conditioning:
        return Conditioning({"text": torch.full((len(self["student_sigma"]), 1), fill)})

    def velocity(self, network: str, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        if network == "fake_teacher":
            return self["fake_velocity"]
        prompted = cond.tensors["text"].any()
        return self["teacher_cond_velocity" if prompted else "teacher_uncond_velocity"]

    def at(self, x0: Tensor) -> Context:
        """As much of a context as a direction needs."""
        xt, sigma = self["student_xt"], self["student_sigma"]
        anchor = Anchor(xt, sigma, sigma, velocity=xt, x0=xt, final=xt)
        return Context(
            anchor,
            self.conditioning(1.0),
            self.conditioning(0.0),
            Draws(0, 0),
            torch.arange(len(sigma)),
            xt=xt,
            sigma=sigma,
            velocity=self["student_velocity"],
            x0=x0,
            modules={},
        )


def run(case: str, name: str, reduction: str) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient with respect to the student's velocity."""
    golden = Recorded(case)
    strength = {"alpha": golden["guidance_scale"].item()} if name == "ca" else {}
    objective = build(name, floor=golden["norm_clip_min"].item(), **strength)
    velocity = golden["student_velocity"].requires_grad_()
    x0 = x0_from_velocity(golden["student_xt"], velocity, golden["student_sigma"])
    queries = objective.direction(golden["teacher_xt"], golden["teacher_sigma"], golden.at(x0))
    ((direction, reference),) = drive([queries], golden)
    loss = pull_loss(x0, direction, reference, objective.floor, reduction)
    (gradient,) = torch.autograd.grad(loss.mean(), velocity)
    return loss, gradient


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient(case, name):
    loss, gradient = run(case, name, "mean")
    golden = Recorded(case)
    torch.testing.assert_close(loss, golden[f"{name}_loss"], rtol=RTOL, atol=0)
    expected = golden[f"{name}_grad_student_velocity"]
    torch.testing.assert_close(gradient, expected, rtol=RTOL, atol=RTOL * expected.abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_per_sample(case, name):
    loss, _ = run(case, name, "none")
    torch.testing.assert_close(
        loss.detach(), Recorded(case)[f"{name}_loss_per_sample"], rtol=RTOL, atol=0
    )


@pytest.mark.parametrize("case", CASES)
def test_fake_teacher_loss(case):
    golden = Recorded(case)
    loss = denoising_loss(golden["fake_velocity"], golden["fake_x0"], golden["fake_noise"])
    torch.testing.assert_close(loss, golden["fake_loss"], rtol=RTOL, atol=0)
