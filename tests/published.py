"""Published models as folders of configurations: the sizes are theirs, and there are no weights.

Written from the classes' defaults and the model cards; only sizes matter here, not vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

Part = tuple[str, dict[str, Any]]

CLIP_L: Part = ("CLIPTextModelWithProjection", {"hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768})  # fmt: skip
CLIP_G: Part = ("CLIPTextModelWithProjection", {"hidden_size": 1280, "intermediate_size": 5120,
    "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280})  # fmt: skip
CLIP_PLAIN: Part = ("CLIPTextModel", CLIP_L[1])
T5_XXL: Part = ("T5EncoderModel", {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu"})  # fmt: skip
GEMMA_2B: Part = ("Gemma2Model", {"hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4})  # fmt: skip
KL16: Part = ("AutoencoderKL", {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "use_quant_conv": False,
    "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159})  # fmt: skip
KL4: Part = ("AutoencoderKL", {**KL16[1], "latent_channels": 4, "use_quant_conv": True,
    "use_post_quant_conv": True, "scaling_factor": 0.13025, "shift_factor": None})  # fmt: skip
DC: Part = ("AutoencoderDC", {"latent_channels": 32, "scaling_factor": 0.41407,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]]})  # fmt: skip
FLOW = "FlowMatchEulerDiscreteScheduler"
DYNAMIC: Part = (FLOW, {"shift": 3.0, "use_dynamic_shifting": True})
EPS: Part = ("DDIMScheduler", {"beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "steps_offset": 1})  # fmt: skip
QWEN_VL: Part = ("Qwen2_5_VLForConditionalGeneration", {"text_config": {"hidden_size": 3584,
    "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064}})  # fmt: skip


def _qwen3(hidden: int, inner: int) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A published model's classes and sizes.

    Attributes:
        pipeline: Its class.
        net: Class and settings of its network.
        vae: Of its autoencoder.
        scheduler: Of its scheduler.
        encoders: Of its text encoders, by component.
        extra: What else model_index.json says.
        name: Component of the network.
    """

    pipeline: str
    net: Part
    vae: Part
    scheduler: Part
    encoders: dict[str, Part] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    name: str = "transformer"


_SD3 = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL}
_SD3_NET = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
_MEDIUM = {"pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": list(range(13))}  # fmt: skip
_LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
    "pos_embed_max_size": 192, "qk_norm": "rms_norm"}  # fmt: skip
_XL = {"sample_size": 128, "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816}  # fmt: skip
_SANA_06 = {"num_attention_heads": 36, "attention_head_dim": 32, "num_layers": 28,
    "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152}  # fmt: skip
_KLEIN_4 = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False}  # fmt: skip
_KLEIN_9 = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32,
    "joint_attention_dim": 12288, "guidance_embeds": False}  # fmt: skip
_MISTRAL = {"text_config": {"model_type": "mistral", "hidden_size": 5120,
    "intermediate_size": 32768, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072}}  # fmt: skip
_PILE_T5 = {"d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_layers": 24, "num_heads": 32,
    "feed_forward_proj": "gated-gelu"}  # fmt: skip
_QWEN_SCHEDULE = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192,
    "shift_terminal": 0.02, "use_dynamic_shifting": True}  # fmt: skip


def _sd3(settings: dict[str, Any]) -> Config:
    net = ("SD3Transformer2DModel", {**_SD3_NET, **settings})
    return Config("StableDiffusion3Pipeline", net, KL16, (FLOW, {"shift": 3.0}), _SD3)


def _sana(settings: dict[str, Any]) -> Config:
    net = ("SanaTransformer2DModel", settings)
    schedule = ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction",
        "use_flow_sigmas": True, "flow_shift": 3.0})  # fmt: skip
    return Config("SanaPipeline", net, DC, schedule, {"text_encoder": GEMMA_2B})


def _klein(settings: dict[str, Any], hidden: int, inner: int) -> Config:
    net = ("Flux2Transformer2DModel", settings)
    encoder = {"text_encoder": ("Qwen3ForCausalLM", _qwen3(hidden, inner))}
    vae = ("AutoencoderKLFlux2", {})
    return Config("Flux2KleinPipeline", net, vae, DYNAMIC, encoder, {"is_distilled": False})


def _wan(settings: dict[str, Any]) -> Config:
    schedule = ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction",
        "use_flow_sigmas": True, "flow_shift": 3.0})  # fmt: skip
    encoder = ("UMT5EncoderModel", {**T5_XXL[1], "vocab_size": 256384})
    net, vae = ("WanTransformer3DModel", settings), ("AutoencoderKLWan", {})
    return Config("WanPipeline", net, vae, schedule, {"text_encoder": encoder})


MODELS: dict[str, Config] = {
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3({"pos_embed_max_size": 192}),
    "stabilityai/stable-diffusion-3.5-medium": _sd3(_MEDIUM),
    "stabilityai/stable-diffusion-3.5-large": _sd3(_LARGE),
    "meituan-longcat/LongCat-Image": Config(
        "LongCatImagePipeline",
        ("LongCatImageTransformer2DModel", {"num_layers": 10, "num_single_layers": 20}),
        KL16,
        (FLOW, {"base_shift": 1.15, "max_shift": 1.15, "use_dynamic_shifting": True}),
        {"text_encoder": QWEN_VL},
    ),
    "Efficient-Large-Model/Sana_600M_1024px_diffusers": _sana(_SANA_06),
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": _sana({}),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": Config(
        "PixArtSigmaPipeline",
        ("PixArtTransformer2DModel", {"caption_channels": 4096,
            "use_additional_conditions": False}),
        KL4,
        ("DPMSolverMultistepScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
        {"text_encoder": T5_XXL},
    ),
    "black-forest-labs/FLUX.1-dev": Config(
        "FluxPipeline",
        ("FluxTransformer2DModel", {"guidance_embeds": True}),
        KL16,
        DYNAMIC,
        {"text_encoder": CLIP_PLAIN, "text_encoder_2": T5_XXL},
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Config(
        "StableDiffusionXLPipeline",
        ("UNet2DConditionModel", _XL),
        KL4,
        ("EulerDiscreteScheduler", {**EPS[1], "timestep_spacing": "leading"}),
        {"text_encoder": CLIP_PLAIN, "text_encoder_2": CLIP_G},
        name="unet",
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Config(
        "StableDiffusionPipeline",
        ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        KL4,
        EPS,
        {"text_encoder": CLIP_PLAIN},
        {"requires_safety_checker": False},
        name="unet",
    ),
    "black-forest-labs/FLUX.2-dev": Config(
        "Flux2Pipeline",
        ("Flux2Transformer2DModel", {}),
        ("AutoencoderKLFlux2", {}),
        DYNAMIC,
        {"text_encoder": ("Mistral3ForConditionalGeneration", _MISTRAL)},
    ),
    "black-forest-labs/FLUX.2-klein-base-4B": _klein(_KLEIN_4, 2560, 9728),
    "black-forest-labs/FLUX.2-klein-base-9B": _klein(_KLEIN_9, 4096, 12288),
    "Qwen/Qwen-Image": Config(
        "QwenImagePipeline",
        ("QwenImageTransformer2DModel", {}),
        ("AutoencoderKLQwenImage", {}),
        (FLOW, _QWEN_SCHEDULE),
        {"text_encoder": QWEN_VL},
    ),
    "Tongyi-MAI/Z-Image": Config(
        "ZImagePipeline",
        ("ZImageTransformer2DModel", {}),
        KL16,
        (FLOW, {"shift": 6.0}),
        {"text_encoder": ("Qwen3Model", _qwen3(2560, 9728))},
    ),
    "Alpha-VLLM/Lumina-Image-2.0": Config(
        "Lumina2Pipeline",
        ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
        KL16,
        (FLOW, {"shift": 6.0}),
        {"text_encoder": GEMMA_2B},
    ),
    "fal/AuraFlow-v0.3": Config(
        "AuraFlowPipeline",
        ("AuraFlowTransformer2DModel", {"pos_embed_max_size": 9216}),
        KL4,
        (FLOW, {"shift": 1.73}),
        {"text_encoder": ("UMT5EncoderModel", _PILE_T5)},
    ),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan({}),
}  # fmt: skip


def write(repo: str, folder: Path) -> Path:
    """The folder of a published model, with its configurations alone."""
    model = MODELS[repo]
    index: dict[str, Any] = {"_class_name": model.pipeline, **model.extra}
    parts = {model.name: model.net, "vae": model.vae, "scheduler": model.scheduler}
    for name, (cls, settings) in parts.items():
        index[name] = ["diffusers", cls]
        kind: Callable[..., Any] = getattr(diffusers, cls)
        with torch.device("meta" if name != "scheduler" else "cpu"):
            kind(**settings).save_config(folder / name)
    for name, (cls, settings) in model.encoders.items():
        index[name] = ["transformers", cls]
        getattr(transformers, cls).config_class(**settings).save_pretrained(folder / name)
        tokenizer = name.replace("text_encoder", "tokenizer")
        index[tokenizer] = ["transformers", "PreTrainedTokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
