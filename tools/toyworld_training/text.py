"""The world's text encoders: they learn to read captions before the denoiser learns to draw them.

As CLIP and T5 do for real models: the denoiser then trains on frozen text features. Without this
stage, the text encoders learned colours and shapes through the picture loss alone, which took far
longer than everything else (docs/tiny-world.md).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fewstep.toyworld.scenes import BACKGROUNDS, COLORS, POSITIONS, RADII, SHAPES, Prompt
from toyworld_training import pipeline
from toyworld_training.fit import FitSettings, fit
from toyworld_training.prompts import distinct_prompts

SETTINGS = FitSettings(steps=3000, lr=2e-3)
BATCH = 128
CAPTIONS = 16_384  # distinct ones
# Attributes of a thing; each has one more class: not mentioned.
_ATTRIBUTES = (tuple(COLORS), SHAPES, tuple(RADII), POSITIONS)
_CLASSES = [len(names) + 1 for names in _ATTRIBUTES]
_OF_SCENE = [*_CLASSES, *_CLASSES, len(BACKGROUNDS) + 1]
_IGNORED = -100  # label that cross_entropy leaves out


class Classifier(nn.Module):
    """The three encoders with linear heads that classify what a caption says; heads are dropped."""

    def __init__(self, pipe: StableDiffusion3Pipeline) -> None:
        """Takes the encoders out of the pipeline; they stay shared with it."""
        super().__init__()
        clips = [pipe.text_encoder, pipe.text_encoder_2]
        self.clips = nn.ModuleList(clips)
        self.t5 = pipe.text_encoder_3
        self.pooled = nn.ModuleList(
            nn.Linear(clip.config.projection_dim, sum(_OF_SCENE)) for clip in clips
        )
        self.word = nn.Linear(self.t5.config.d_model, sum(_CLASSES))
        self.short = nn.Linear(2 * clips[0].config.hidden_size, sum(_CLASSES))

    def forward(self, ids: tuple[Tensor, Tensor, Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Logits: each CLIP's pooled output [B, all], T5's tokens, CLIP's tokens [B, L, one]."""
        outputs = [
            clip(i, output_hidden_states=True) for clip, i in zip(self.clips, ids[:2], strict=True)
        ]
        scene = [head(f[0]) for head, f in zip(self.pooled, outputs, strict=True)]
        short = torch.cat([f.hidden_states[-2] for f in outputs], dim=-1)
        return scene, self.word(self.t5(ids[2])[0]), self.short(short)


def tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Tensor:
    """Token ids [n, MAX_TOKENS], padded."""
    length = pipeline.MAX_TOKENS
    encoded = tokenizer(captions, padding="max_length", max_length=length, truncation=True)
    return torch.tensor(encoded.input_ids)


def _of_thing(prompt: Prompt, number: int) -> list[int]:
    if number >= len(prompt.things):
        return [len(names) for names in _ATTRIBUTES]
    thing = prompt.things[number]
    mentioned = (thing.color, thing.shape, thing.size, thing.position)
    return [
        len(names) if word is None else names.index(word)
        for word, names in zip(mentioned, _ATTRIBUTES, strict=True)
    ]


def _scene_labels(prompt: Prompt) -> list[int]:
    grounds = tuple(BACKGROUNDS)
    ground = len(grounds) if prompt.background is None else grounds.index(prompt.background)
    return [*_of_thing(prompt, 0), *_of_thing(prompt, 1), ground]


def _word_labels(prompt: Prompt, offset: int) -> list[list[int]]:
    """For every token, the attributes of the thing to which its word belongs."""
    rows = [[_IGNORED] * len(_ATTRIBUTES) for _ in range(pipeline.MAX_TOKENS)]
    number, inside = 0, True
    for place, word in enumerate(str(prompt).split()):
        number, inside = number + (word == "and"), inside and word != "on"
        if inside and word != "and":
            rows[place + offset] = _of_thing(prompt, number)
    return rows


def _cross_entropy(logits: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    parts = logits.split(sizes, dim=-1)
    losses = [
        nn.functional.cross_entropy(part.flatten(0, -2), labels[..., i].flatten())
        for i, part in enumerate(parts)
    ]
    return torch.stack(losses).mean()


def train(
    pipe: StableDiffusion3Pipeline,
    folder: Path,
    *,
    seed: int = 0,
    settings: FitSettings = SETTINGS,
    device: str = "cpu",
) -> None:
    """Trains the pipeline's text encoders in place, and freezes them.

    Args:
        pipe: Its text encoders are changed, nothing else.
        folder: For the log, and to continue from.
        seed: Of captions, order and heads.
        settings: How long and how fast.
        device: Where to train.
    """
    prompts = distinct_prompts(CAPTIONS, seed + 2, held_out=False)
    captions = [str(prompt) for prompt in prompts]
    scene = torch.tensor([_scene_labels(prompt) for prompt in prompts]).to(device)
    # One token a word, so that words can be found: CLIP puts a mark before the first.
    words = torch.tensor([_word_labels(prompt, 0) for prompt in prompts]).to(device)
    short_words = torch.tensor([_word_labels(prompt, 1) for prompt in prompts]).to(device)
    ids = [
        tokens(tokenizer, captions).to(device)
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(pipe).train().requires_grad_(True).to(device)

    def loss(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(captions), (BATCH,), generator=generator).to(device)
        batch = (ids[0][rows], ids[1][rows], ids[2][rows])
        pooled, long, short = classifier(batch)
        first, second = (_cross_entropy(part, scene[rows], _OF_SCENE) for part in pooled)
        t5 = _cross_entropy(long, words[rows], _CLASSES)
        clip = _cross_entropy(short, short_words[rows], _CLASSES)
        terms = {"pooled": first + second, "t5": t5, "clip": clip}
        return {"loss": first + second + t5 + clip, **terms}

    fit(classifier, loss, settings, folder)
    classifier.cpu().eval().requires_grad_(False)
