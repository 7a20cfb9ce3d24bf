"""Second-scale proof: a teacher known in closed form, a student of a few thousand weights.

Points of the plane, drawn from a mixture of Gaussians; the prompt says which of the modes are in
play, the empty prompt allows all of them. A small network learns the mixture by flow matching;
then, at 4 evaluations, DM + CDM must beat on every seed as many further steps of flow matching,
and the exact teacher itself.

The seeds are members of one batched network that share nothing but the clock: every member has
weights, data and random values of its own, and Adam works weight by weight.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fewstep import objectives
from fewstep.core.flow import add_noise, expand
from fewstep.core.noise import Draws
from fewstep.core.schedules import RandomGrid, StaticShift, few_step_sigmas, with_shift
from fewstep.core.solver import sample, simulate
from fewstep.core.types import Conditioning
from fewstep.objectives.fake_teacher import denoising_loss, mix_weights, update_loss

SEEDS = 5
BATCH = 128
PRETRAINING, ITERATIONS, EVERY = 1200, 240, 2

MODES = 8
STD = 0.4
ANGLES = 2 * math.pi * torch.arange(MODES) / MODES
CENTRES = 2.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
PROMPTS = torch.stack(
    [
        torch.isin(torch.arange(MODES), torch.tensor(modes)) / len(modes)
        for modes in ([0, 3, 5], [1, 4, 6], [2, 7], [0, 2, 4, 6])
    ]
)


def prompts(index: Tensor) -> Conditioning:
    """Probability of each mode, [B, MODES]."""
    return Conditioning({"modes": PROMPTS[index]})


def exact_velocity(xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """E[eps - x0 | xt] of the mixture: a weighted mean of what the single Gaussians answer."""
    s = expand(sigma, xt)
    offset = xt[:, None] - (1 - s)[:, None] * CENTRES
    variance = (((1 - s) * STD) ** 2 + s**2)[:, None]
    logits = cond.tensors["modes"].log() - offset.square().sum(-1) / (2 * variance[..., 0])
    x0 = CENTRES + (1 - s)[:, None] * STD**2 / variance * offset
    eps = s[:, None] / variance * offset
    return (logits.softmax(1)[..., None] * (eps - x0)).sum(1)


def real_points(cond: Conditioning, rng: torch.Generator) -> Tensor:
    """Points of the mixture itself, [B, 2]."""
    mode = torch.multinomial(cond.tensors["modes"], 1, generator=rng)[:, 0]
    return CENTRES[mode] + STD * torch.randn(len(mode), 2, generator=rng)


class Members(nn.Module):
    """A velocity network per seed; consecutive BATCHes of samples belong to consecutive seeds."""

    def __init__(self, width: int = 64, octaves: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves))
        sizes = [2 + 1 + 2 * octaves + MODES, width, width, width, 2]
        layers = pairwise(sizes)
        self.weights = nn.ParameterList(
            torch.stack([nn.Linear(i, o).weight.T for _ in range(SEEDS)]) for i, o in layers
        )
        self.biases = nn.ParameterList(torch.zeros(SEEDS, 1, o) for o in sizes[1:])

    def forward(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        waves = sigma[:, None] * self.frequencies
        parts = [xt, sigma[:, None], waves.sin(), waves.cos(), 4 * cond.tensors["modes"]]
        hidden = torch.cat(parts, dim=1).unflatten(0, (SEEDS, -1))
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = nn.functional.silu(torch.baddbmm(bias, hidden, weight))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1]).flatten(0, 1)


class Trained:
    """A network with its optimizer; the rate falls to nothing over a known number of steps."""

    def __init__(self, net: nn.Module, rate: float, steps: int) -> None:
        self.optimizer = torch.optim.AdamW(net.parameters(), rate)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.02, steps)

    def step(self, losses: Tensor) -> None:
        """One step on losses [SEEDS * BATCH]: each member minimises the mean of its own."""
        self.optimizer.zero_grad()
        (losses.sum() / BATCH).backward()
        self.optimizer.step()
        self.schedule.step()


def fit_flow(net: Members, steps: int, rate: float, seed: int) -> None:
    """Plain flow matching on real points."""
    rng = torch.Generator().manual_seed(seed)
    trained, count = Trained(net, rate, steps), SEEDS * BATCH
    for _ in range(steps):
        cond = prompts(torch.randint(len(PROMPTS), (count,), generator=rng))
        x0, eps = real_points(cond, rng), torch.randn(count, 2, generator=rng)
        sigma = torch.rand(count, generator=rng)
        velocity = net(add_noise(x0, eps, sigma), sigma, cond)
        trained.step(denoising_loss(velocity, x0, eps, reduction="none"))


def distil(pretrained: Members) -> Members:
    """DM + CDM from the closed-form teacher, Algorithm 1."""
    student, fake = copy.deepcopy(pretrained), copy.deepcopy(pretrained)
    fields = {"student": student, "teacher": exact_velocity, "fake_teacher": fake}

    class Fields:
        modules: ClassVar[dict] = {}

        def velocity(self, network, xt, sigma, cond):
            return fields[network](xt, sigma, cond)

    networks = Fields()
    terms = [objectives.build("dm"), objectives.build("cdm")]
    train_student = Trained(student, 2e-3, ITERATIONS // EVERY)
    train_fake = Trained(fake, 2e-3, 2 * ITERATIONS)
    grid, indices = RandomGrid(min_steps=4, max_steps=10), torch.arange(SEEDS * BATCH)
    null = Conditioning({"modes": torch.full((SEEDS * BATCH, MODES), 1 / MODES)})
    for step in range(ITERATIONS):
        draws = Draws(seed=0, step=step)
        cond = prompts(draws.integers("prompt", indices, len(PROMPTS)))
        sigmas = with_shift(grid(draws.shared("grid")), StaticShift(1.0))
        trajectory = simulate(student, draws.normal("noise", indices, (2,)), sigmas, cond)
        anchor = trajectory.pick(draws.integers("anchor", indices, len(sigmas) - 1))
        train_fake.step(update_loss(fake, anchor, cond=cond, draws=draws, indices=indices))
        mix_weights(fake.parameters(), student.parameters(), 0.001)
        if (step + 1) % EVERY == 0:
            batch = objectives.AnchorBatch(anchor, cond, null, draws, indices)
            found = objectives.evaluate(terms, networks, batch)
            train_student.step(sum(term.loss for term in found))
    return student


def distances(velocity, steps: int, count: int = 1000) -> Tensor:
    """Energy distance between samples and real points, mean over the prompts, [SEEDS]."""
    rng = torch.Generator().manual_seed(99)
    sigmas = with_shift(torch.tensor(few_step_sigmas(steps)), StaticShift(1.0))
    found = []
    for prompt in range(len(PROMPTS)):
        cond = prompts(torch.full((SEEDS * count,), prompt))
        drawn = sample(velocity, torch.randn(SEEDS * count, 2, generator=rng), sigmas, cond)
        real = real_points(cond, rng)
        found.append(energy_distance(drawn.view(SEEDS, -1, 2), real.view(SEEDS, -1, 2)))
    return torch.stack(found).mean(0)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased, [..., n, 2] twice -> [...]."""
    own = x.shape[-2] / (x.shape[-2] - 1)  # a point is not its own pair
    between, within_x, within_y = (torch.cdist(*p).mean((-2, -1)) for p in ((x, y), (x, x), (y, y)))
    return 2 * between - own * (within_x + within_y)


def test_the_closed_form_teacher_draws_from_the_mixture():
    assert distances(exact_velocity, steps=50).max() < 0.01
    assert distances(exact_velocity, steps=4).min() > 0.02


def test_the_closed_form_teacher_is_the_best_that_flow_matching_can_learn():
    rng = torch.Generator().manual_seed(0)
    cond = prompts(torch.zeros(20_000, dtype=torch.long))
    x0, eps = real_points(cond, rng), torch.randn(20_000, 2, generator=rng)
    sigma = torch.rand(20_000, generator=rng)
    xt = add_noise(x0, eps, sigma)
    velocity = exact_velocity(xt, sigma, cond)
    residual = eps - x0 - velocity  # orthogonal to every function of (xt, sigma)
    for other in (xt, velocity, torch.tanh(3 * xt), expand(sigma, xt) * xt):
        assert (residual * other).mean().item() == pytest.approx(0, abs=0.03)


def test_distillation_beats_as_many_further_steps_of_flow_matching_on_every_seed():
    torch.manual_seed(0)
    pretrained = Members()
    fit_flow(pretrained, PRETRAINING, rate=4e-3, seed=1)
    control = copy.deepcopy(pretrained)
    fit_flow(control, ITERATIONS + ITERATIONS // EVERY, rate=2e-3, seed=2)
    student = distil(pretrained)

    ours, theirs = distances(student, steps=4), distances(control, steps=4)
    exact = distances(exact_velocity, steps=4)
    assert (ours < 0.67 * theirs).all(), f"student {ours.tolist()}, control {theirs.tolist()}"
    assert (ours < exact).all(), f"student {ours.tolist()}, exact teacher {exact.tolist()}"
