"""Parts that tiny pipelines share: real classes, random weights, tokenizers learned on the spot.

Everything is a function of the seed of torch's global generator: call `seeded` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from diffusers import AutoencoderKL, LongCatImagePipeline, QwenImagePipeline
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from toyworld_training.pipeline import clip_tokenizer, t5_tokenizer
from toyworld_training.prompts import distinct_prompts

__all__ = [
    "CHATML",
    "clip",
    "clip_tokenizer",
    "corpus",
    "gemma",
    "gemma_tokenizer",
    "qwen3",
    "qwen_tokenizer",
    "qwen_vl",
    "seeded",
    "t5",
    "t5_tokenizer",
    "vae4",
    "vae16",
    "wake",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template: each turn between its marks, as Qwen's models have it."""

_QWEN_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A context with torch's global generator at a seed; it is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def wake(net: nn.Module, std: float = 0.1) -> nn.Module:
    """Gives parameters that start at zero random values, in place: else nothing would matter."""
    for parameter in net.parameters():
        if not parameter.any():
            parameter.normal_(std=std)
    return net.eval()


# -------------------------------------------------------------------------------- tokenizers


@cache
def corpus() -> tuple[str, ...]:
    """What tokenizers learn from: captions, and the texts that pipelines wrap around prompts.

    Those texts must be there: Qwen-Image drops exactly 34 tokens of its own, one a word.
    """
    qwen = QwenImagePipeline(None, None, None, None, None).prompt_template_encode
    longcat = LongCatImagePipeline(None, None, None, None, None, None)
    wrappers = (
        qwen,
        longcat.prompt_template_encode_prefix,
        longcat.prompt_template_encode_suffix,
        "user\nassistant\n<think>\n\n</think>\n\n",
    )
    captions = (str(prompt) for prompt in distinct_prompts(300, 0, held_out=False))
    return (*wrappers, *captions)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer of Qwen's class, pads on the right, with a chat template."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    learner.train_from_iterator(corpus(), trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    tokenizer = Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate([*pieces, "<|endoftext|>"])},
        merges=[(a, b) for a, b in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
        model_max_length=4096,
        additional_special_tokens=list(_QWEN_MARKS),
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def gemma_tokenizer(*wrappers: str) -> GemmaTokenizer:
    """A tokenizer of Gemma's class: starts with its mark, pads on the right, any byte has an id.

    Args:
        wrappers: Texts that the pipeline puts around prompts, to be known word by word.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = GemmaTokenizer().backend_tokenizer.normalizer
    learner.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=1200, min_frequency=1, show_progress=False)
    learner.train_from_iterator((*wrappers, *corpus()), trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    return GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[(a, b) for a, b in learned["merges"]],
        padding_side="right",
        add_bos_token=True,
        model_max_length=4096,
    )


# -------------------------------------------------------------------------------- text encoders


def clip(tokenizer: CLIPTokenizer, *, projection: bool = True, width: int = 16) -> nn.Module:
    """A CLIP text encoder; its projection is as wide as itself."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder.eval()


def t5(tokenizer: T5Tokenizer, *, width: int = 32) -> T5EncoderModel:
    """A T5 encoder."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config).eval()


def qwen_vl(tokenizer: Qwen2Tokenizer, *, width: int = 32) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL model, of which pipelines use the text half; heads of 16."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 16,
        "num_key_value_heads": width // 16,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],
        },
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for name, mark in (
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
            ("image", "image_pad"),
            ("video", "video_pad"),
        )
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3(tokenizer: Qwen2Tokenizer, *, width: int = 32, layers: int = 2) -> Qwen3Model:
    """A Qwen3 model without its head; attention heads of 16."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        head_dim=16,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3Model(config).eval()


def gemma(tokenizer: GemmaTokenizer, *, width: int = 32) -> Gemma2Model:
    """A Gemma 2 model; with smaller weights its norms would drown the tokens."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=4096,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )
    return Gemma2Model(config).eval()


# -------------------------------------------------------------------------------- autoencoders


def vae16(scale: float = 0.3611, shift: float = 0.1159, *, levels: int = 2) -> AutoencoderKL:
    """An autoencoder of 16 channels that halves the sides, as FLUX's (4 levels) divides by 8."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=[8] * levels,
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scale,
        shift_factor=shift,
    ).eval()


def vae4(scale: float) -> AutoencoderKL:
    """An autoencoder of 4 channels that halves the sides, as Stable Diffusion's divides by 8."""
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=[8, 8],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        scaling_factor=scale,
    ).eval()
