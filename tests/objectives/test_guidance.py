"""Teachers that take their guidance as an input: CA by a difference, matching at drawn scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from fewstep.config import Recipe
from fewstep.core.noise import Draws
from fewstep.core.types import Conditioning
from fewstep.objectives import AnchorBatch, build, evaluate, refuse_unsupported
from fewstep.objectives.cdm import with_guidance
from fewstep.train import distill
from fewstep.train.roles import STUDENT
from fewstep.train.state import build as build_run
from fewstep.train.state import check
from fewstep.train.step import Batch, iteration
from fewstep.utils.errors import FewstepError
from tiny import discover

INDICES = torch.arange(5)
FIXED = 3.5


@pytest.fixture
def prompts(cond) -> Conditioning:
    """Prompts with the fixed guidance that they were encoded with."""
    return Conditioning({**cond.tensors, "guidance": torch.full((5,), FIXED)})


class Watched(nn.Module):
    """A network that remembers the guidance it was asked at."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.scales: list[Tensor] = []

    def forward(self, xt, sigma, cond):
        self.scales.append(cond.tensors["guidance"])
        return self.net(xt, sigma, cond)


@pytest.fixture
def watched(roles):
    """The three networks, each remembering the guidance it was asked at."""
    nets = {name: Watched(getattr(roles, name)) for name in vars(roles) if name.endswith("_net")}
    return replace(roles, **nets)


def ask(recipe, roles, anchor, cond, null, *, step=0, rows=INDICES):
    part = type(anchor)(**{name: value[rows] for name, value in vars(anchor).items()})
    batch = AnchorBatch(part, cond.select(rows), null.select(rows), Draws(0, step), rows)
    (term,) = evaluate([build(**recipe)], roles, batch)
    return term


# ---------------------------------------------------------------- CA by a difference of guidance


class Affine(nn.Module):
    """Classifier-free guidance of another network, with the scale as an input: affine in it."""

    def __init__(self, net: nn.Module, null: Conditioning) -> None:
        super().__init__()
        self.net, self.null = net.double(), null

    def forward(self, xt, sigma, cond):
        text = Conditioning({"text": cond.tensors["text"]})
        empty = self.net(xt, sigma, self.null)
        scale = cond.tensors["guidance"][:, None, None]
        return empty + scale * (self.net(xt, sigma, text) - empty)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 8.0), (2.0, 3.5)])
def test_for_an_affine_teacher_it_is_ca(low, high, roles, anchor, cond, null):
    double = {name: tensor.double() for name, tensor in vars(anchor).items()}
    anchor, cond, null = (
        type(anchor)(**double),
        Conditioning({"text": cond.tensors["text"].double()}),
        Conditioning({"text": null.tensors["text"].double()}),
    )
    roles.student_net.double()
    given = Conditioning({**cond.tensors, "guidance": torch.ones(5).double()})
    affine = replace(roles, teacher_net=Affine(roles.teacher_net, null))
    # Of the same name, both draw the same probe.
    one, other = build("ca"), build("ca_embedded", low=low, high=high)
    other = other.model_copy(update={"name": "ca"})
    (plain,) = evaluate([one], roles, AnchorBatch(anchor, cond, null, Draws(0, 0), INDICES))
    batch = AnchorBatch(anchor, given, null, Draws(0, 0), INDICES)
    (embedded,) = evaluate([other], affine, batch)
    for field in ("direction", "norm", "loss"):
        torch.testing.assert_close(
            getattr(embedded, field), getattr(plain, field), rtol=1e-5, atol=1e-7
        )
    torch.testing.assert_close(embedded.direction, plain.direction, rtol=1e-10, atol=1e-12)


def test_it_asks_the_teacher_twice_and_nobody_else(watched, anchor, prompts, null):
    ask({"name": "ca_embedded", "low": 2.0, "high": 6.0}, watched, anchor, prompts, null)
    assert watched.calls == {"student": 1, "teacher": 2}
    assert [scales.unique().tolist() for scales in watched.teacher_net.scales] == [[2.0], [6.0]]
    assert watched.student_net.scales[0].unique().tolist() == [FIXED]
    low, high = (xt for role, xt, _ in watched.asked if role == "teacher")
    assert torch.equal(low, high)


def test_it_vanishes_for_a_teacher_that_ignores_its_guidance(roles, anchor, prompts, null):
    class Deaf(nn.Module):
        def forward(self, xt, sigma, cond):
            return torch.sin(xt)

    term = ask({"name": "ca_embedded"}, replace(roles, teacher_net=Deaf()), anchor, prompts, null)
    assert not term.direction.any()
    assert not term.loss.any()


# --------------------------------------------------------------- matching at a drawn guidance


@pytest.mark.parametrize("name", ["dm", "cdm"])
def test_the_teacher_alone_is_asked_at_the_drawn_guidance(name, watched, anchor, prompts, null):
    recipe = {"name": name, "teacher_guidance": {"low": 1, "high": 8}}
    ask(recipe, watched, anchor, prompts, null)
    (drawn,) = watched.teacher_net.scales
    assert len(drawn.unique()) == 5
    assert (drawn > 1).all() and (drawn < 8).all()
    for other in (watched.student_net, watched.fake_teacher_net):
        assert [scales.unique().tolist() for scales in other.scales] == [[FIXED]]


def test_the_guidance_is_a_function_of_step_name_and_sample(watched, anchor, prompts, null):
    def drawn(name="dm", **where):
        ask({"name": name, "teacher_guidance": {}}, watched, anchor, prompts, null, **where)
        return watched.teacher_net.scales[-1]

    whole = drawn()
    assert torch.equal(drawn(), whole)
    rows = torch.tensor([3, 1])
    assert torch.equal(drawn(rows=rows), whole[rows])
    assert not torch.isclose(drawn(step=1), whole).any()
    assert not torch.isclose(drawn("cdm"), whole).any()


def test_the_range_is_filled_evenly():
    scales = build("dm", teacher_guidance={"low": 1, "high": 8}).teacher_guidance
    drawn = scales(Draws(0, 0).uniform("dm/guidance", range(2000)))
    assert drawn.mean().item() == pytest.approx(4.5, abs=0.2)
    assert drawn.min() < 1.1 and drawn.max() > 7.9


def test_without_the_setting_all_are_asked_as_encoded(watched, anchor, prompts, null):
    ask({"name": "dm"}, watched, anchor, prompts, null)
    assert watched.teacher_net.scales[0] is prompts.tensors["guidance"] or torch.equal(
        watched.teacher_net.scales[0], prompts.tensors["guidance"]
    )


# ------------------------------------------------------------------------ what does not go together


@pytest.mark.parametrize(
    ("recipe", "guidance"),
    [
        ({"name": "ca"}, "embedded"),
        ({"name": "ca_embedded"}, "cfg"),
        ({"name": "dm", "teacher_guidance": {}}, "cfg"),
        ({"name": "cdm", "teacher_guidance": {}}, "cfg"),
    ],
)
def test_an_objective_that_does_not_suit_the_guidance_is_refused(recipe, guidance):
    with pytest.raises(FewstepError) as caught:
        refuse_unsupported([build("isg"), build(**recipe)], guidance, "tiny")
    text = str(caught.value)
    assert caught.value.code == "mismatch"
    assert "objectives.1" in text and recipe["name"] in text and "\n" not in text
    refuse_unsupported([build(**recipe)], {"cfg": "embedded", "embedded": "cfg"}[guidance], "tiny")


@pytest.mark.parametrize("guidance", ["cfg", "embedded"])
def test_all_else_goes_with_every_model(guidance):
    refuse_unsupported([build("dm"), build("cdm"), build("isg")], guidance, "tiny")


def test_a_conditioning_without_guidance_says_so(cond):
    with pytest.raises(FewstepError) as caught:
        with_guidance(cond, 3.5)
    assert caught.value.code == "mismatch"


def recipe_of(folder, tmp_path, *objectives, **options) -> Recipe:
    """A run of a few steps on a pipeline of random weights."""
    (tmp_path / "prompts.txt").write_text("a ring\n", encoding="utf-8")
    return Recipe.from_values(
        {
            "model": {"path": str(folder), "options": options},
            "data": {"prompts": str(tmp_path / "prompts.txt"), "batch_size": 2},
            "resolution": {"height": 16, "width": 16},
            "grid": {"name": "random", "max_steps": 2},
            "objectives": list(objectives),
            "fake_teacher": {"ida_rate": 0.03},
            "student": {"every": 1},
            "train": {"steps": 1},
        }
    )


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory):
    """FLUX.1-dev, tiny: guidance is an input of its network."""
    folder = tmp_path_factory.mktemp("flux")
    discover()["flux"].build(folder)
    return folder


def test_a_run_without_embedded_guidance_is_refused_before_it_begins(pipeline_folder, tmp_path):
    recipe = recipe_of(pipeline_folder, tmp_path, {"name": "dm"}, {"name": "ca_embedded"})
    with pytest.raises(FewstepError):
        distill(recipe, tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_run_with_it_is_refused_before_it_begins(flux_folder, tmp_path):
    recipe = recipe_of(flux_folder, tmp_path, {"name": "ca"})
    with pytest.raises(FewstepError):
        distill(recipe, tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_flux_takes_all_that_is_meant_for_it(flux_folder, tmp_path):
    terms = [
        {"name": "ca_embedded"},
        {"name": "dm", "teacher_guidance": {"low": 1, "high": 8}},
        {"name": "cdm", "teacher_guidance": {"low": 1, "high": 8}},
        {"name": "isg", "distance": {"name": "charbonnier"}},
    ]
    recipe = recipe_of(flux_folder, tmp_path, *terms, max_sequence_length=32)
    run = build_run(recipe, tmp_path / "run", check(recipe), Console(quiet=True))
    cond, null = run.encoder.encode(["a ring", "a star"]), run.encoder.null(2)
    before = {name: p.clone() for name, p in run.train_state.roles.parameters(STUDENT).items()}
    batch = Batch(cond, null, torch.arange(2))
    # Twice: learning rates start from 0.
    found = [iteration(run.train_state, [batch], Draws(0, i), run.algorithm) for i in range(2)][-1]
    for term in terms:
        assert torch.isfinite(found[f"loss/{term['name']}"])
    assert found["loss/ca_embedded"] > 0 and found["loss/isg"] > 0
    after = run.train_state.roles.parameters(STUDENT)
    assert any(not torch.equal(after[name], before[name]) for name in before)
