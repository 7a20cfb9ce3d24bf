"""What all tests share: one thread, no network, toy networks with the real calling convention."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections import Counter
from dataclasses import dataclass, field

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from fewstep.records import Anchor, Conditioning

torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("house")

SHAPE = (2, 3)


class ToyVelocity(nn.Module):
    """Smooth velocity field on latents [B, 2, 3], conditional on ``cond.tensors["text"]`` [B, 4].

    Samples do not talk to each other, as in every real backbone.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(6 + 1 + 4, 16)
        self.outer = nn.Linear(16, 6)

    def forward(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        features = torch.cat([xt.flatten(1), sigma[:, None], cond.tensors["text"]], dim=1)
        return self.outer(torch.tanh(self.inner(features))).view_as(xt)


@dataclass
class ToyRoles:
    """The three networks; counts the calls of each and remembers where they were asked."""

    student_net: nn.Module
    teacher_net: nn.Module
    fake_teacher_net: nn.Module
    calls: Counter = field(default_factory=Counter)
    asked: list = field(default_factory=list)

    def student(self, xt, sigma, cond):
        return self._ask("student", xt, sigma, cond)

    def teacher(self, xt, sigma, cond):
        return self._ask("teacher", xt, sigma, cond)

    def fake_teacher(self, xt, sigma, cond):
        return self._ask("fake_teacher", xt, sigma, cond)

    def _ask(self, role, xt, sigma, cond):
        self.calls[role] += 1
        self.asked.append((role, xt.detach().clone(), sigma.clone()))
        return getattr(self, f"{role}_net")(xt, sigma, cond)


@pytest.fixture
def roles() -> ToyRoles:
    """Three different networks."""
    return ToyRoles(ToyVelocity(1), ToyVelocity(2), ToyVelocity(3))


@pytest.fixture
def cond() -> Conditioning:
    """Five prompts."""
    return Conditioning({"text": torch.randn(5, 4, generator=torch.Generator().manual_seed(4))})


@pytest.fixture
def null() -> Conditioning:
    """The encoded empty prompt, for five samples."""
    one = torch.randn(1, 4, generator=torch.Generator().manual_seed(5))
    return Conditioning({"text": one.repeat(5, 1)})


@pytest.fixture
def anchor() -> Anchor:
    """Where five samples are in their simulations."""
    rng = torch.Generator().manual_seed(6)
    xt, velocity, final = (torch.randn(5, *SHAPE, generator=rng) for _ in range(3))
    sigma = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.3])
    x0 = xt - sigma[:, None, None] * velocity
    return Anchor(xt=xt, sigma=sigma, velocity=velocity, x0=x0, final=final)
