"""FLUX.2 dev and klein."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)
from transformers.utils.import_utils import is_torchvision_available

from fewstep.models import Backbone
from fewstep.models.packing import pack, unpack
from tiny import Size, Tiny, parts

_MARKS = (
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
)

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set text = message['content'][0]['text'] %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)


class Oracle(nn.Module):
    """(xt - target) / sigma on a clock from 0 to 1."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        return ((hidden_states - self.target) / timestep[:, None, None],)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Mistral's marks, which knows the pipeline's system message."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(_MARKS),
        min_frequency=1,
        show_progress=False,
    )
    learner.train_from_iterator([*[SYSTEM_MESSAGE] * 9, *parts.corpus()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=4096,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def mistral(tokenizer: PreTrainedTokenizerFast) -> Mistral3ForConditionalGeneration:
    """Mistral 3 with as many layers as the pipeline looks at."""
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "initializer_range": 0.3,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    return Mistral3ForConditionalGeneration(config).eval()


def processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """What the published folder has around its tokenizer; the tokenizer, without torchvision."""
    if not is_torchvision_available():
        return tokenizer
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(
        patch_size={"height": 14, "width": 14}, size={"longest_edge": 56}
    )
    return PixtralProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=_TEMPLATE,
    )


def _network(joint: int, *, guidance: bool) -> nn.Module:
    return parts.wake(
        Flux2Transformer2DModel(
            in_channels=128,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=joint,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        )
    )


def _autoencoder() -> AutoencoderKLFlux2:
    """Halves the sides, and has a batch norm that is not the identity."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _save(pipe: DiffusionPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder, safe_serialization=True)


def _build_dev(folder: Path) -> None:
    with parts.seeded():
        tokenizer = mistral_tokenizer()
        encoder = mistral(tokenizer)
        net = _network(48, guidance=True)
        pipe = Flux2Pipeline(_scheduler(), _autoencoder(), encoder, processor(tokenizer), net)
    _save(pipe, folder)


def _build_klein(folder: Path) -> None:
    with parts.seeded():
        tokenizer = parts.qwen_tokenizer()
        encoder = Qwen3ForCausalLM(parts.qwen3(tokenizer, width=16, layers=27).config).eval()
        net = _network(48, guidance=False)
        pipe = Flux2KleinPipeline(_scheduler(), _autoencoder(), encoder, tokenizer, net)
    _save(pipe, folder)


def _published_dev() -> nn.Module:
    return Flux2Transformer2DModel()


def _published_klein() -> nn.Module:
    """The size of klein-base 9B."""
    return Flux2Transformer2DModel(
        num_layers=8,
        num_single_layers=24,
        num_attention_heads=32,
        joint_attention_dim=12288,
        guidance_embeds=False,
    )


def _spatial(backbone: Backbone, latents: Tensor, size: Size) -> Tensor:
    """[B, N, 128] -> [B, 128, h, w], which the stock pipelines take."""
    backbone.latent_shape(*size)
    return unpack(latents, backbone.grid(latents.shape[1]), 1)


def _normalised(backbone: Backbone, latents: Tensor, size: Size) -> Tensor:
    """Klein's latents [B, 32, 2h, 2w] as the autoencoder takes them -> [B, N, 128]."""
    vae = backbone.pipe.vae
    scale = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return (pack(latents) - vae.bn.running_mean) / scale


flux2 = Tiny(
    "flux2",
    "flux2",
    _build_dev,
    Oracle,
    _published_dev,
    options={"max_sequence_length": 96},
    size=(32, 32),
    wide=(32, 48),
    latents=_spatial,
    guidance=2.0,  # 4 is what the network is told unasked
)
klein = Tiny(
    "klein",
    "klein",
    _build_klein,
    Oracle,
    _published_klein,
    options={"max_sequence_length": 64},
    size=(32, 32),
    wide=(32, 48),
    latents=_spatial,
    back=_normalised,
)
