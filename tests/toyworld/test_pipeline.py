"""The tiny pipeline: real classes, every caption whole, trained as the stock pipeline asks."""

from __future__ import annotations

import json

import torch

from toyworld_training import denoiser, pipeline, text
from toyworld_training.fit import FitSettings, fit
from toyworld_training.prompts import distinct_prompts


def test_every_caption_fits_and_every_word_is_known():
    pipe = pipeline.build(0)
    captions = [str(prompt) for prompt in distinct_prompts(1000, 1, held_out=True)]
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3):
        ids = tokenizer(captions).input_ids
        assert max(map(len, ids)) <= pipeline.MAX_TOKENS
        marks = 1 if tokenizer is pipe.tokenizer_3 else 2
        for caption, found in zip(captions, ids, strict=True):
            assert len(found) == len(caption.split()) + marks
            assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in found[:-1]


def test_captions_are_read_as_the_stock_pipeline_reads_them():
    pipe = pipeline.build(1)
    captions = ["small red circle left", "", "blue square"]
    found = denoiser.read(pipe, captions, chunk=2)
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions,
        None,
        None,
        do_classifier_free_guidance=False,
        max_sequence_length=pipeline.MAX_TOKENS,
    )
    assert torch.allclose(found.tokens, embeds, atol=1e-6)
    assert torch.allclose(found.pooled, pooled, atol=1e-6)


def test_text_encoders_learn_what_is_said(tmp_path):
    pipe = pipeline.build(0)
    transformer = [weight.clone() for weight in pipe.transformer.parameters()]
    settings = FitSettings(steps=30, lr=3e-3, warmup=1, log_every=1)
    text.train(pipe, tmp_path, settings=settings)
    losses = [json.loads(line)["loss"] for line in _log(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
    assert not any(p.requires_grad for p in pipe.text_encoder_3.parameters())
    after = list(pipe.transformer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(transformer, after, strict=True))


def test_training_resumes_where_it_stopped(tmp_path):
    """Four steps at once equal two, a new process' worth of state, and two more."""

    def run(folder, steps):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)

        def loss(step):
            data = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
            return {"loss": net(data).square().mean()}

        settings = FitSettings(steps=steps, lr=0.1, warmup=1, decay_from=1.0, save_every=2)
        return fit(net, loss, settings, folder).state_dict()

    straight = run(tmp_path / "a", 4)
    run(tmp_path / "b", 2)
    resumed = run(tmp_path / "b", 4)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_few_steps_of_the_teacher_lower_its_loss(tmp_path):
    pipe = pipeline.build(0)
    pairs = denoiser.draw_pairs(pipe.vae, 64, seed=0)
    assert len(pairs.captions) == len(pairs.latents) == 64
    settings = FitSettings(steps=6, lr=2e-3, warmup=1, log_every=1)
    denoiser.train(pipe, pairs, tmp_path, settings=settings)
    losses = [json.loads(line)["loss"] for line in _log(tmp_path)]
    assert losses[-1] < losses[0]


def _log(folder):
    return (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
