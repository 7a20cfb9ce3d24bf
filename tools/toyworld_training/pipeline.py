"""Tiny but real Stable Diffusion 3 pipelines, built from nothing.

Every part is the class that a full-size checkpoint holds, tokenizers and text encoders included;
only the sizes differ. Nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from toyworld_training import autoencoder
from toyworld_training.prompts import distinct_prompts

MAX_TOKENS = 14  # the longest caption has 11 words, CLIP adds two marks
SHIFT = 3.0  # SD3's timestep shift


@dataclass(frozen=True)
class Sizes:
    """Widths and depths. The text widths obey SD3: two CLIP widths fit side by side into T5's."""

    hidden: int = 128
    heads: int = 4
    layers: int = 8
    patch: int = 2
    clip: int = 48
    t5: int = 96
    text_layers: int = 2


SHIPPED = Sizes()
TINY = Sizes(hidden=32, heads=2, layers=2, clip=16, t5=32)  # for tests


def build(
    seed: int = 0, sizes: Sizes = TINY, *, vae: AutoencoderKL | None = None
) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline with random weights, a function of the seed, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizers = (clip_tokenizer("<|endoftext|>"), clip_tokenizer("!"), t5_tokenizer())
        return StableDiffusion3Pipeline(
            transformer=build_transformer(sizes),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            vae=vae or _random_vae(),
            text_encoder=_clip(tokenizers[0], sizes),
            tokenizer=tokenizers[0],
            text_encoder_2=_clip(tokenizers[1], sizes),
            tokenizer_2=tokenizers[1],
            text_encoder_3=_t5(tokenizers[2], sizes),
            tokenizer_3=tokenizers[2],
        )


def build_transformer(sizes: Sizes) -> SD3Transformer2DModel:
    """The denoiser for 8x8 latents of 16 channels."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=sizes.patch,
        in_channels=16,
        out_channels=16,
        num_layers=sizes.layers,
        attention_head_dim=sizes.hidden // sizes.heads,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.t5,
        caption_projection_dim=sizes.hidden,
        pooled_projection_dim=2 * sizes.clip,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    ).eval()


def start_as_identity(net: nn.Module) -> None:
    """Zeroes the modulation, so that every block begins as the identity (adaLN-Zero)."""
    for name, module in net.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _random_vae() -> AutoencoderKL:
    vae = autoencoder.build()
    vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
    return vae.eval()


def _corpus() -> list[str]:
    return [str(prompt) for prompt in distinct_prompts(500, 0, held_out=False)]


def _bpe(pre_tokenizer: Any, normalizer: Any, size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair pieces in the order of their ids, and merges, learned from the captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [(a, b) for a, b in model["merges"]]


def clip_tokenizer(pad: str) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the world's words; SD3's second pads with "!" (id 0)."""
    plain = CLIPTokenizer()._tokenizer  # lends the class's own normaliser and word splitting
    pieces, merges = _bpe(plain.pre_tokenizer, plain.normalizer, 742)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = letters + [letter + "</w>" for letter in letters]
    # The end mark must have the largest id: CLIP finds the pooled token by it.
    known += [piece for piece in pieces if piece not in set(known)]
    known += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(known)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=MAX_TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer (unigram): the world's words whole, anything else letter by letter.

    The ids of <pad>, </s> and <unk> are 0, 1 and 2, as the class demands.
    """
    words = sorted({word for caption in _corpus() for word in caption.split()})
    vocab = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    vocab += [("▁" + word, -2.0) for word in words] + [("▁", -6.0)]
    vocab += [(chr(code), -8.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def _clip(tokenizer: CLIPTokenizer, sizes: Sizes) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.clip,
        intermediate_size=2 * sizes.clip,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=sizes.clip,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    # SD3 reads the next-to-last layer before any norm: at the usual 0.02, words would whisper.
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder.eval()


def _t5(tokenizer: T5Tokenizer, sizes: Sizes) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=sizes.t5,
        d_kv=sizes.t5 // 4,
        d_ff=2 * sizes.t5,
        num_layers=sizes.text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config).eval()
