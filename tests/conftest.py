"""What all tests share: one thread, no network, toy networks with the real calling convention."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from fewstep.core.types import Anchor, Conditioning

torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("house")

SHAPE = (2, 3)


@pytest.fixture
def count(record_property):
    """``count("kills", 13)``: how often a test did something; summed up in the last lines."""
    return lambda what, number=1: record_property("count", (what, number))


@pytest.fixture
def tell(record_property):
    """``tell("500 steps: ...")``: a line of figures for the end."""
    return lambda line: record_property("told", line)


def pytest_terminal_summary(terminalreporter):
    """Prints what the tests counted, so that a promise can be read with its number of trials."""
    totals: Counter[str] = Counter()
    told: list[str] = []
    for report in (each for group in terminalreporter.stats.values() for each in group):
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name == "count":
                    totals[value[0]] += value[1]
                elif name == "told":
                    told.append(value)
    if totals:
        terminalreporter.section("counted")
    for what, number in sorted(totals.items()):
        terminalreporter.write_line(f"{number:7,} {what}")
    for line in told:
        terminalreporter.write_line(line)


class ToyVelocity(nn.Module):
    """Smooth velocity field on latents [B, 2, 3], conditional on ``cond.tensors["text"]`` [B, 4].

    A ``guidance`` [B] beside it scales the text: it is felt, but not in proportion. Samples do not
    talk to each other, as in every real backbone.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(6 + 1 + 4, 16)
        self.outer = nn.Linear(16, 6)

    def forward(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        guidance = cond.tensors.get("guidance", torch.ones_like(sigma))
        text = guidance[:, None] * cond.tensors["text"]
        features = torch.cat([xt.flatten(1), sigma[:, None], text], dim=1)
        return self.outer(torch.tanh(self.inner(features))).view_as(xt)


@dataclass
class ToyRoles:
    """The three networks; counts the calls of each and remembers where they were asked."""

    student_net: nn.Module
    teacher_net: nn.Module
    fake_teacher_net: nn.Module
    calls: Counter = field(default_factory=Counter)
    asked: list = field(default_factory=list)
    modules: dict = field(default_factory=dict)

    def velocity(self, network, xt, sigma, cond):
        self.calls[network] += 1
        self.asked.append((network, xt.detach().clone(), sigma.clone()))
        return getattr(self, f"{network}_net")(xt, sigma, cond)

    @contextmanager
    def capture(self, network, blocks):
        """The blocks of a toy network are its two linear layers."""
        net, outputs, collected = getattr(self, f"{network}_net"), {}, []
        layers = {number: (net.inner, net.outer)[number] for number in blocks}
        hooks = [
            layer.register_forward_hook(lambda *call, n=number: outputs.update({n: (call[2],)}))
            for number, layer in layers.items()
        ]
        yield collected
        for hook in hooks:
            hook.remove()
        collected += [outputs[number] for number in blocks]


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
    sigma_next = torch.tensor([0.9, 0.6, 0.5, 0.2, 0.0])
    x0 = xt - sigma[:, None, None] * velocity
    return Anchor(xt, sigma, sigma_next, velocity=velocity, x0=x0, final=final)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is kept of teachers stays in this session: yours is neither read nor filled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# ---------------------------------------------------------------------- real classes, tiny sizes


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A real StableDiffusion3Pipeline folder with random weights, a millisecond a network call."""
    from toyworld_training import pipeline

    folder = tmp_path_factory.mktemp("teacher") / "pipeline"
    pipeline.build(seed=0).save_pretrained(folder, safe_serialization=True)
    return folder


def _moved(weights, generator):
    return {
        name: weight + 0.05 * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, pipeline_folder):
    """``make_run(mode="full", **sections) -> folder`` of a run that moved its student at random."""

    @cache
    def students(recipe):
        """Step -> what a checkpoint of it holds, and its score."""
        from fewstep import models
        from fewstep.train.roles import Roles

        backbone = models.load(pipeline_folder, max_sequence_length=16)
        start = Roles.build(backbone, recipe, seed=0).state("student")
        generator = torch.Generator().manual_seed(1)
        return {
            step: ({"student": start, "ema": _moved(start, generator)}, score)
            for step, score in ((2, 0.7), (4, 0.3))
        }

    def make(mode="full", **sections):
        from fewstep.config import Recipe
        from fewstep.train.checkpoint import store

        folder = tmp_path_factory.mktemp("runs") / "run"
        folder.mkdir()
        captions = ["small red circle left", "blue square on gray", "large green cross"]
        (folder / "prompts.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
        data = {
            "model": {"path": str(pipeline_folder), "options": {"max_sequence_length": 16}},
            "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 2},
            "resolution": {"height": 64, "width": 64},
            "objectives": [{"name": "dm"}, {"name": "cdm"}],
            "student": {"mode": mode, **({"lora": {"rank": 2}} if mode == "lora" else {})},
            "train": {"steps": 4},
        }
        recipe = Recipe.from_values({**data, **sections})
        for step, (groups, score) in students(recipe.student).items():
            store.save(folder / "checkpoints", step, groups, {"score": score})
        (folder / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        return folder

    return make
