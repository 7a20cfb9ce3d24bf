"""Fresh noise: the path's own points, by name and by sample."""

from __future__ import annotations

import torch

from fewstep.core.flow import add_noise
from fewstep.core.noise import Draws, renoise, renoise_evenly
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


def several(count: int, samples: int = 5):
    return renoise_evenly(
        torch.ones(samples, 2, 3),
        Uniform(0.1, 0.9),
        count,
        anchor_sigma=torch.ones(samples),
        name="dm",
        draws=Draws(0, 0),
        indices=torch.arange(samples),
    )


def test_the_first_of_several_is_the_one_of_one():
    (one,) = several(1)
    for part, same in zip(several(4)[0], one, strict=True):
        assert torch.equal(part, same)


def test_several_spread_their_sigmas_and_mirror_their_noise():
    made = several(4)
    spread = torch.stack([each.sigma for each in made]).sort(0).values.diff(dim=0)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.2))  # a quarter of 0.1 to 0.9
    assert torch.equal(made[1].eps, -made[0].eps)
    assert torch.equal(made[3].eps, -made[2].eps)
    assert not torch.isclose(made[2].eps, made[0].eps).any()
    for each in made:
        assert torch.equal(each.xt, add_noise(torch.ones(5, 2, 3), each.eps, each.sigma))


def test_each_of_several_follows_the_law():
    for each in several(3, samples=4000):
        quartiles = torch.quantile(each.sigma, torch.tensor([0.25, 0.5, 0.75]))
        torch.testing.assert_close(quartiles, torch.tensor([0.3, 0.5, 0.7]), atol=0.03, rtol=0)
        assert abs(float(each.eps.mean())) < 0.03
        assert abs(float(each.eps.std()) - 1) < 0.03
