"""Objectives of another package: a discriminator, a gradient through teachers, a derivative."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.functional import softplus

from fewstep.config import OptimizerRecipe
from fewstep.core.flow import add_noise
from fewstep.core.schedules import Law, Uniform
from fewstep.core.types import Term, per_sample
from fewstep.objectives import Objective, Pull, Query, TrainedNetwork
from fewstep.objectives.sites import AtAnchor, Site


class Head(nn.Module):
    """A logit [B] from the image tokens that a block of the teacher returns, [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens):
        self.calls += 1
        return self.out(self.norm(tokens.float())).mean((1, 2))


class Adversarial(Objective):
    """Non-saturating loss of a head on the teacher's features; the teacher's x0 counts as real."""

    name: Literal["adversarial"] = "adversarial"
    site: Site = AtAnchor()
    block: int = 1

    def networks(self, backbone):
        config = backbone.net.config
        head = Head(config.num_attention_heads * config.attention_head_dim)
        return {"discriminator": TrainedNetwork(head, OptimizerRecipe(lr=1e-3))}

    def noised(self, x0, at, name):
        eps = at.draws.normal(f"{self.name}/{name}", at.indices, x0.shape[1:])
        sigma = torch.full_like(at.sigma, 0.5)
        return add_noise(x0, eps, sigma), sigma

    def term(self, at):
        (seen,) = yield [
            Query(
                "teacher", *self.noised(at.x0, at, "term"), at.cond, grad=True, blocks=(self.block,)
            )
        ]
        logit = at.modules["discriminator"](seen.features[0][-1])
        gap = (at.x0 - seen.x0).detach()
        return Term(self.name, softplus(-logit), per_sample(gap.abs()), gap, at.x0.detach())

    def network_loss(self, network, at):
        (teacher,) = yield [Query("teacher", at.xt, at.sigma, at.cond)]
        real, fake = yield [
            Query("teacher", *self.noised(x0, at, name), at.cond, blocks=(self.block,))
            for x0, name in ((teacher.x0, "real"), (at.x0, "fake"))
        ]
        head = at.modules[network]
        return softplus(-head(real.features[0][-1])) + softplus(head(fake.features[0][-1]))


class ScoreIdentity(Objective):
    """SiD's loss with alpha 1 (arXiv 2404.04057): its gradient passes through both teachers."""

    name: Literal["score_identity"] = "score_identity"
    site: Site = AtAnchor()

    def term(self, at):
        eps = at.draws.normal(f"{self.name}/eps", at.indices, at.x0.shape[1:])
        sigma = torch.full_like(at.sigma, 0.6)
        xt = add_noise(at.x0, eps, sigma)
        real, fake = yield [
            Query(network, xt, sigma, at.cond, grad=True) for network in ("teacher", "fake_teacher")
        ]
        gap = real.x0 - fake.x0
        loss = per_sample(gap * (fake.x0 - at.x0))
        return Term(self.name, loss, per_sample(gap.abs()).detach(), gap.detach(), at.x0.detach())


class Tangent(Pull):
    """A pull along the derivative of the teacher's velocity on its own path: a JVP."""

    name: Literal["tangent"] = "tangent"
    site: Site = AtAnchor()
    probe: Law = Uniform()

    def direction(self, xt, sigma, at):
        (here,) = yield [Query("teacher", xt, sigma, at.cond)]
        along = (here.velocity, torch.ones_like(sigma))
        (moving,) = yield [Query("teacher", xt, sigma, at.cond, tangent=along)]
        return -moving.jvp, moving.x0
