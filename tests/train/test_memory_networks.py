"""Activations computed again, a teacher in lower precision, a VAE and encoders that are away."""

from __future__ import annotations

import gc

import pytest
import torch

from fewstep.core.noise import Draws
from fewstep.train.memory.offload import vae_on_device
from fewstep.train.roles import STUDENT, TEACHER, TRAINED
from fewstep.train.trainer import advance as step

LORA = ["student.mode=lora", "student.lora.rank=4"]


def advance(run):
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.opened(0):
        step(run)


def ask(run, role):
    xt = Draws(3, 0).normal("xt", range(2), (16, 8, 8))
    cond = run.encoder.encode(["a ring", "a star"])
    return getattr(run.train_state.roles, role)(xt, torch.tensor([0.8, 0.3]), cond)


@pytest.mark.parametrize("mode", [["student.mode=full"], LORA], ids=["full", "lora"])
def test_recomputing_some_blocks_gives_the_same_gradient(mode, make_run):
    found, kept = [], []
    for setting in ("false", "2", "true"):
        run = make_run(*mode, f"student.gradient_checkpointing={setting}")
        roles, sizes = run.train_state.roles, []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            answer = ask(run, STUDENT)
        with roles.active(STUDENT):
            answer.square().mean().backward()
        kept.append(sum(sizes))
        found.append(
            {n: p.grad for n, p in roles.parameters(STUDENT).items() if p.grad is not None}
        )
    for other in found[1:]:
        assert other.keys() == found[0].keys() and other
        for name, grad in found[0].items():
            torch.testing.assert_close(other[name], grad, rtol=1e-5, atol=1e-9)
    assert kept[2] < kept[1] < kept[0]


def test_the_teacher_alone_is_low(make_run):
    run = make_run("memory.teacher_dtype=bfloat16", "student.every=1")
    roles = run.train_state.roles
    assert {p.dtype for p in roles.net(TEACHER).parameters()} == {torch.bfloat16}
    for role in TRAINED:
        assert {p.dtype for p in roles.parameters(role).values()} == {torch.float32}
    plain = make_run()
    assert torch.equal(ask(run, STUDENT), ask(plain, STUDENT)), "the student computes as before"
    teacher = ask(run, TEACHER)
    assert teacher.dtype == torch.float32 and not torch.equal(teacher, ask(plain, TEACHER))
    torch.testing.assert_close(teacher, ask(plain, TEACHER), atol=0.1, rtol=0.1)
    advance(run)


def test_masters_stay_whole_where_all_compute_low(make_run):
    """The published way: the teacher frozen in bfloat16, float32 masters under autocast."""
    run = make_run("model.dtype=bfloat16")
    assert {p.dtype for p in run.train_state.roles.net(TEACHER).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in run.train_state.roles.parameters(STUDENT).values()} == {torch.float32}


def test_trained_weights_may_be_low(make_run):
    run = make_run("model.dtype=bfloat16", "memory.trained_dtype=bfloat16", "student.every=1")
    for role in TRAINED:
        assert {p.dtype for p in run.train_state.roles.parameters(role).values()} == {
            torch.bfloat16
        }
    before = ask(run, STUDENT)
    advance(run)
    assert not torch.equal(ask(run, STUDENT), before)
    assert {w.dtype for w in run.train_state.ema.weights.values()} == {torch.float32}


def test_the_vae_visits(make_run):
    run = make_run("memory.offload_vae=true")
    vae = run.backbone.pipe.vae
    moves = []
    vae.to = lambda device: moves.append(torch.device(device).type)
    with vae_on_device(run.backbone):
        assert not moves, "it is there already"
    run.backbone.net.to("meta")  # stands for an accelerator
    with vae_on_device(run.backbone):
        assert moves == ["meta"]
    assert moves == ["meta", "cpu"]


def networks() -> set[int]:
    """Text encoders that are in memory, whoever holds them."""
    gc.collect()
    kinds = ("CLIPTextModelWithProjection", "T5EncoderModel")
    return {id(each) for each in gc.get_objects() if type(each).__name__ in kinds}


def test_encoders_are_gone_once_all_is_encoded(make_run):
    before = networks()
    plain = make_run()
    assert plain.backbone.pipe.text_encoder is not None and len(networks() - before) == 3
    del plain
    run = make_run("data.encode_ahead=true")
    assert all(getattr(run.backbone.pipe, n, None) is None for n in run.backbone.encoder_names)
    assert not networks() - before, "somebody still holds them"
    advance(run)
