"""Laws of the scenes: a grammar rich enough, many pictures a prompt, and every one fits it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fewstep.toyworld.scenes import (
    POSITIONS,
    RADII,
    SIDE,
    Prompt,
    ThingSpec,
    draw_scene,
    parse,
    render,
)
from fewstep.utils.resources import resolve
from toyworld_training.prompts import distinct_prompts, is_held_out, prompts


def test_the_grammar_has_thousands_of_prompts_and_reads_itself_back():
    found = distinct_prompts(3000, 0, held_out=False)
    assert len(set(found)) == 3000
    assert all(parse(str(prompt)) == prompt for prompt in found)


def test_held_out_prompts_never_enter_training():
    held = set(distinct_prompts(500, 1, held_out=True))
    seen = set(itertools.islice(prompts(2, held_out=False), 5000))
    assert not held & seen


@pytest.mark.parametrize(
    "text", ["", "red", "red circle on green", "circle red", "red circle and", "tiny red circle"]
)
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_three_things_are_refused():
    with pytest.raises(ValueError):
        parse("red circle and blue square and green cross")


def test_scenes_fit_their_prompts_and_nothing_touches_or_leaves_the_picture():
    rng = np.random.default_rng(3)
    for prompt in itertools.islice(prompts(4, held_out=False), 400):
        scene = draw_scene(prompt, rng)
        for spec, thing in zip(prompt.things, scene.things, strict=False):
            assert (thing.color, thing.shape) == (spec.color, spec.shape)
            assert spec.size in (None, thing.size)
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            if spec.position:
                along = thing.x if spec.position in ("left", "right") else thing.y
                assert (along < SIDE / 2) == (spec.position in ("left", "top"))
        assert scene.background == (prompt.background or scene.background)
        for thing in scene.things:
            for centre in (thing.x, thing.y):
                assert thing.radius - 0.5 < centre < SIDE - thing.radius + 0.5
        for one, other in itertools.combinations(scene.things, 2):
            apart = max(abs(one.x - other.x), abs(one.y - other.y))
            assert apart > one.radius + other.radius


def test_one_prompt_has_many_modes():
    """Every position, both sizes, and with and without company: all occur under one prompt."""
    rng = np.random.default_rng(5)
    prompt = Prompt((ThingSpec("red", "circle"),))
    scenes = [draw_scene(prompt, rng) for _ in range(200)]
    assert {len(scene.things) for scene in scenes} == {1, 2}
    assert {scene.things[0].size for scene in scenes} == set(RADII)
    assert len({scene.background for scene in scenes}) == 4
    quadrants = {(s.things[0].x < SIDE / 2, s.things[0].y < SIDE / 2) for s in scenes}
    assert len(quadrants) == len(POSITIONS)


def test_drawing_is_a_function_of_the_seed():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return render([draw_scene(prompt, rng) for prompt in distinct_prompts(4, 0, held_out=True)])

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    assert draw(1).min() >= 0 and draw(1).max() <= 1


def test_the_shipped_lists_are_large_and_share_no_prompt():
    lists = {
        name: resolve(f"package://fewstep.toyworld/data/prompts/{name}.txt")
        .read_text()
        .splitlines()
        for name in ("train", "heldout", "preview")
    }
    assert len(lists["train"]) >= 2000 and len(lists["heldout"]) >= 1000
    everything = [caption for captions in lists.values() for caption in captions]
    assert len(set(everything)) == len(everything)
    assert all(is_held_out(parse(c)) == (name != "train") for name in lists for c in lists[name])
