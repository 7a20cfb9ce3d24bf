"""The oracle reads real scenes right, and does not take mush for pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fewstep.toyworld.oracle import judge, read
from fewstep.toyworld.scenes import SIDE, Scene, draw_scene, parse, render
from toyworld_training.prompts import prompts


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    found = list(itertools.islice(prompts(seed, held_out=False), count))
    scenes = [draw_scene(prompt, rng) for prompt in found]
    return found, scenes, render(scenes)


def right(prompt, image):
    return all(flag for _, flag in judge(prompt, read(image)))


def facts(scene: Scene):
    return sorted((t.color, t.shape, t.size) for t in scene.things), scene.background


def test_nearly_every_fresh_scene_is_read_fully_right():
    found, scenes, images = drawn(1000, 11)
    flags = []
    for prompt, scene, image in zip(found, scenes, images, strict=True):
        reading = read(image)
        seen = sorted((str(t.color), str(t.shape), t.size) for t in reading.things)
        near = all(
            min(abs(t.x - s.x) + abs(t.y - s.y) for s in reading.things) < 2 for t in scene.things
        )
        same = (seen, reading.background) == facts(scene)
        flags.append(same and near and right(prompt, image))
    assert np.mean(flags) >= 0.995


def quarters(scene):
    return {(thing.x > SIDE / 2, thing.y > SIDE / 2) for thing in scene.things}


def test_two_scenes_blended_are_not_right():
    """A guidance-free mean of two modes, the ghost that few steps leave, must not pass."""
    rng = np.random.default_rng(12)
    found = list(itertools.islice(prompts(13, held_out=False), 100))
    pairs = [(draw_scene(p, rng), draw_scene(p, rng)) for p in found]
    one, other = (render(scenes) for scenes in zip(*pairs, strict=True))
    verdicts = [right(p, i) for p, i in zip(found, (one + other) / 2, strict=True)]
    # Where both have their things in the same places, only the grounds mix.
    apart = [quarters(first) != quarters(second) for first, second in pairs]
    flags = [flag for flag, differs in zip(verdicts, apart, strict=True) if differs]
    assert len(flags) >= 70
    assert np.mean(flags) < 0.1


def test_the_wrong_prompt_is_not_right():
    found, _, images = drawn(200, 14)
    flags = [right(p, i) for p, i in zip(found[1:], images[:-1], strict=True)]
    assert np.mean(flags) < 0.05


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("red circle", {"color", "shape"}),
        ("blue square left", {"position"}),
        ("small blue square", {"size"}),
        ("blue square on white", {"background"}),
        ("blue square and red circle", {"color", "shape"}),
        ("blue square", set()),
    ],
)
def test_each_demand_is_judged_by_itself(text, wrong):
    scene = draw_scene(parse("large blue square right on gray"), np.random.default_rng(3))
    (image,) = render([Scene(scene.things[:1], scene.background, scene.rgb)])
    assert {name for name, good in judge(parse(text), read(image)) if not good} == wrong


def test_noise_and_plain_ground_show_nothing():
    noise = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)
    assert not right(parse("red circle"), noise)
    plain = np.full((3, 64, 64), 0.5, dtype=np.float32)
    assert read(plain).things == ()
    assert not right(parse("red circle"), plain)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError):
        read(np.zeros((3, 32, 32), dtype=np.float32))
