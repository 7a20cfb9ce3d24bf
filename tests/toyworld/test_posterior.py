"""Posterior means as training targets: the right scenes, rightly weighted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.core.flow import add_noise
from fewstep.toyworld.scenes import draw_scene, parse
from toyworld_training.posterior import FACTS, SceneBank, describe, posterior_mean
from toyworld_training.prompts import prompts


@pytest.fixture(scope="module")
def drawn():
    rng, stream = np.random.default_rng(0), prompts(1, held_out=False)
    found = [next(stream) for _ in range(3000)]
    scenes = [draw_scene(prompt, rng) for prompt in found]
    return found, scenes, SceneBank(torch.tensor([describe(scene) for scene in scenes]).char())


def shows(scene, spec):
    """Which things of a scene are as a prompt says, told without the bank's tables."""
    sides = {"left": lambda t: t.x < 32, "right": lambda t: t.x > 32}
    sides |= {"top": lambda t: t.y < 32, "bottom": lambda t: t.y > 32}
    return {
        place
        for place, thing in enumerate(scene.things)
        if (thing.color, thing.shape) == (spec.color, spec.shape)
        and spec.size in (None, thing.size)
        and (spec.position is None or sides[spec.position](thing))
    }


def fits(scene, prompt):
    found = [shows(scene, spec) for spec in prompt.things]
    chosen = {(a,) for a in found[0]}
    if len(found) == 2:
        chosen = {(a, b) for a in found[0] for b in found[1] if a != b}
    return bool(chosen) and prompt.background in (None, scene.background)


@pytest.mark.parametrize(
    "caption",
    [
        "red circle",
        "small red circle left",
        "large blue cross bottom on black",
        "red circle and blue square",
        "blue square and red circle",
        "green cross left and pink circle",
    ],
)
def test_those_scenes_fit_that_fit(drawn, caption):
    _, scenes, bank = drawn
    alone, paired = bank.fitting(parse(caption))
    assert sorted([*alone.tolist(), *paired.tolist()]) == [
        row for row, scene in enumerate(scenes) if fits(scene, parse(caption))
    ]
    assert all(len(scenes[row].things) == 1 for row in alone)
    assert all(len(scenes[row].things) == 2 for row in paired)


def test_a_scene_is_among_its_own_candidates_and_all_of_them_fit(drawn):
    found, scenes, bank = drawn
    generator = torch.Generator().manual_seed(0)
    for row in range(0, len(found), 50):
        rows = bank.candidates(row, found[row], 16, generator)
        assert rows.shape == (16,) and row in rows
        assert all(fits(scenes[other], found[row]) for other in rows.tolist())
    rows = bank.candidates(7, None, 16, generator)
    assert rows.shape == (16,) and 7 in rows


def test_one_thing_means_one_or_two_in_equal_parts(drawn):
    found, scenes, bank = drawn
    row = next(row for row, prompt in enumerate(found) if len(prompt.things) == 1)
    rows = bank.candidates(row, found[row], 40, torch.Generator().manual_seed(0))
    assert abs(sum(len(scenes[other].things) == 1 for other in rows.tolist()) - 20) <= 1


def test_the_mean_is_bayes_rule():
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randn(3, 5, 2, 4, generator=generator)
    sigma = torch.tensor([0.9, 0.5, 0.2])
    xt = add_noise(candidates[:, 2], torch.randn(3, 2, 4, generator=generator), sigma)
    for b, s in enumerate(sigma.double()):
        noise = (xt[b].double() - (1 - s) * candidates[b].double()) / s
        likely = torch.exp(-noise.square().sum((1, 2)) / 2)
        expected = torch.einsum("n,nij->ij", likely / likely.sum(), candidates[b].double())
        torch.testing.assert_close(
            posterior_mean(xt, sigma, candidates)[b], expected.float(), rtol=1e-4, atol=1e-5
        )


def test_pure_noise_says_nothing_and_no_noise_says_all():
    candidates = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(2))
    sure = add_noise(candidates[:, 4], torch.zeros(2, 3), torch.full((2,), 1e-3))
    torch.testing.assert_close(
        posterior_mean(sure, torch.full((2,), 1e-3), candidates), candidates[:, 4]
    )
    nothing = posterior_mean(torch.randn(2, 3), torch.ones(2), candidates)
    torch.testing.assert_close(nothing, candidates.mean(1))


def test_facts_have_one_length(drawn):
    _, scenes, _ = drawn
    assert {len(describe(scene)) for scene in scenes} == {FACTS}
