"""SD3 without T5, as its authors allow: less to load, and zeros in its place."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from fewstep import models
from fewstep.train.memory.offload import without_network
from tiny import discover

SHORT, LONG = "small red circle", " ".join(["small red circle left and blue square right"] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3") / "pipeline"
    discover()["sd3"].build(folder)
    return folder


@pytest.fixture(scope="module")
def without(folder):
    return models.load(folder, max_sequence_length=2, t5=False)


def test_its_tokens_are_zeros_and_clips_are_what_they_were(folder, without):
    whole = models.load(folder, max_sequence_length=2)
    text, full = (b.encode([SHORT]).tensors["prompt_embeds"] for b in (without, whole))
    assert text.shape == full.shape == (1, without.text_tokens, 32)
    assert torch.equal(text[:, :-2], full[:, :-2])
    assert not text[:, -2:].any() and full[:, -2:].any()


def test_it_is_neither_loaded_nor_planned_for(folder, without):
    assert without.pipe.text_encoder_3 is None and without.pipe.tokenizer_3 is None
    assert models.load_meta(folder, t5=False).pipe.text_encoder_3 is None


def test_how_much_t5_reads_does_not_cut_what_clip_reads(without):
    assert without.overlong([SHORT, LONG]) == [False, True]


def test_prompts_are_encoded_where_the_network_is_not(folder):
    backbone = models.load(folder, t5=False)
    expected = backbone.encode([SHORT]).tensors["prompt_embeds"]
    net = backbone.net
    with without_network(backbone):
        assert torch.equal(backbone.encode([SHORT]).tensors["prompt_embeds"], expected)
    assert backbone.net is net
    alone = models.load(folder, t5=False, network=False)
    assert torch.equal(alone.encode([SHORT]).tensors["prompt_embeds"], expected)


def test_the_stock_pipeline_is_told_to_leave_it_out(without, tmp_path):
    without.save(tmp_path / "out", without.net)
    StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")  # plain diffusers loads it whole
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **without.stock_load())
    found, *_ = pipe.encode_prompt(
        [SHORT], None, None, do_classifier_free_guidance=False, max_sequence_length=2
    )
    assert torch.equal(found, without.encode([SHORT]).tensors["prompt_embeds"])
