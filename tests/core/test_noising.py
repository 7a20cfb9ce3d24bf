"""Fresh noise: the path's own points, by name and by sample."""

from __future__ import annotations

import torch

from fewstep.core.flow import add_noise
from fewstep.core.noise import Draws, renoise
from fewstep.core.schedules import Uniform, UpToAnchor

X0 = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0])


def noised(name: str):
    return renoise(
        X0, UpToAnchor(), anchor_sigma=SIGMA, name=name, draws=Draws(0, 0), indices=torch.arange(5)
    )


def test_the_parts_make_the_point():
    made = noised("ca")
    assert torch.equal(made.xt, add_noise(X0, made.eps, made.sigma))
    assert (made.sigma <= SIGMA).all()


def test_names_do_not_share_noise():
    one, other = noised("dm"), noised("cdm")
    assert not torch.isclose(one.sigma, other.sigma).any()
    assert not torch.isclose(one.eps, other.eps).any()


def test_the_noisy_latent_carries_no_graph():
    x0 = X0.clone().requires_grad_()
    made = renoise(
        x0, UpToAnchor(), anchor_sigma=SIGMA, name="a", draws=Draws(0, 0), indices=torch.arange(5)
    )
    assert not made.xt.requires_grad


def test_re_noising_follows_the_law():
    samples = 4000
    made = renoise(
        torch.ones(samples, 2, 3),
        Uniform(0.1, 0.9),
        anchor_sigma=torch.ones(samples),
        name="dm",
        draws=Draws(0, 0),
        indices=torch.arange(samples),
    )
    quartiles = torch.quantile(made.sigma, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.3, 0.5, 0.7]), atol=0.03, rtol=0)
    assert abs(float(made.eps.mean())) < 0.03
    assert abs(float(made.eps.std()) - 1) < 0.03
