"""SANA, with the solver that it is published with and with Euler's."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from torch import Tensor, nn

from tiny import Tiny
from tiny.parts import gemma, gemma_tokenizer, seeded, wake

_CLOCK = 0.5  # of the network; published ones have 1


class Oracle(nn.Module):
    """(xt - target) / sigma on SANA's clock."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        sigma = (timestep / (1000 * _CLOCK))[:, None, None, None]
        return ((hidden_states - self.target) / sigma,)


def _autoencoder() -> AutoencoderDC:
    """4 channels and 8 pixels a side for each latent, where the published one has 32 and 32."""
    stages = 4
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * stages,
        decoder_block_out_channels=(8,) * stages,
        encoder_layers_per_block=(1,) * stages,
        decoder_layers_per_block=(1,) * stages,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        scaling_factor=0.41407,
    ).eval()


def _save(folder: Path, scheduler: Any) -> None:
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"]
    with seeded():
        tokenizer = gemma_tokenizer(*instruction.default)
        net = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=8,
            patch_size=1,
            timestep_scale=_CLOCK,
        )
        pipe = SanaPipeline(tokenizer, gemma(tokenizer), _autoencoder(), wake(net), scheduler)
    pipe.save_pretrained(folder, safe_serialization=True)


def _build(folder: Path) -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    _save(folder, scheduler)


def _build_flow(folder: Path) -> None:
    _save(folder, FlowMatchEulerDiscreteScheduler(shift=3.0))


_OPTIONS = {"max_sequence_length": 32}
sana = Tiny("sana", "sana", _build, Oracle, SanaTransformer2DModel, options=_OPTIONS)
sana_flow = Tiny(
    "sana_flow",
    "sana",
    _build_flow,
    Oracle,
    SanaTransformer2DModel,
    options=_OPTIONS,
    variant=True,
)
