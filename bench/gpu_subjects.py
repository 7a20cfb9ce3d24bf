"""What bench/gpu.py measures: networks of published sizes, or toys of them, with random weights."""

import gc
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import models
from fewstep.config import Recipe
from fewstep.core.types import Conditioning
from fewstep.models import Backbone, shipped_configs
from fewstep.models.dummy_conditioning import dummy_conditioning
from fewstep.objectives import build_all
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import memory_items
from fewstep.train.distributed import SINGLE
from fewstep.train.memory.low_copy import cast
from fewstep.train.memory.quantization import quantize
from fewstep.train.state import _train_state
from fewstep.train.step import Algorithm, Batch, TrainState

LATE = 1000  # a step at which the recipes' weights have warmed up
SIDES = {"plain": ("plain", False), "fused": ("fused", False), "compiled": ("fused", True)}
"""What is compared: `train.step` and `student.compile`."""
UNCOMPILED = ["plain", "fused"]
NOT_HERE = ("VAE", "text encoders")


_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_WIDTHS = {"joint_attention_dim": 32, "pooled_projection_dim": 16}
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
FLUX = "black-forest-labs/FLUX.1-dev"
TOYS: dict[str, dict[str, Any]] = {
    SD3: {**_HEADS, **_WIDTHS, "num_layers": 2, "caption_projection_dim": 32,
        "sample_size": 16, "pos_embed_max_size": 16},
    FLUX: {**_HEADS, **_WIDTHS, "num_layers": 1, "num_single_layers": 2,
        "axes_dims_rope": [4, 6, 6]},
}  # fmt: skip
"""How a toy of a model differs from its published sizes."""


def write_configs(model: str, folder: Path, *, tiny: bool) -> None:
    """A published model's folder without weights; of a toy, with a smaller network."""
    shipped_configs.write(model, folder)
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | (TOYS[model] if tiny else {})
    file.write_text(json.dumps(config), encoding="utf-8")


@dataclass(frozen=True)
class Size:
    """How much is asked: of a GPU, or of anything at all.

    Attributes:
        tiny: Toy networks on a processor, uncompiled.
        batches: Samples of a student update, the first that there is memory for.
        updates: Student updates of each side.
        squares: Sides of the matrices whose product shows the peak.
        seconds: When an unfinished comparison of steps takes its last turn.
    """

    tiny: bool
    batches: tuple[int, ...]
    updates: int
    squares: tuple[int, ...]
    seconds: float

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def overrides(self) -> list[str]:
        """What the shipped recipes are told at this size."""
        return ["resolution.height=64", "resolution.width=64"] if self.tiny else []


REAL = Size(False, batches=(4, 2, 1), updates=6, squares=(4096, 8192, 16384), seconds=200)
TINY = Size(True, batches=(2,), updates=1, squares=(64,), seconds=5)


# ----------------------------------------------------------------------------- what is measured


@dataclass(eq=False)
class Subject:
    """A model in training: random weights, and all else as a run has it.

    Attributes:
        recipe: The shipped one with its overrides.
        backbone: Its model.
        train_state: Networks and optimizers.
        algorithm: What one iteration does.
        batch: Random prompts.
        tflop: Arithmetic of one forward pass of one sample, in 1e12.
        planned: Bytes that `fewstep plan` expects, without text encoders and VAE.
    """

    recipe: Recipe
    backbone: Backbone
    train_state: TrainState
    algorithm: Algorithm
    batch: Batch
    tflop: float
    planned: int


def build(model: str, name: str, overrides: list[str], size: Size) -> Subject:
    """What a shipped recipe trains, of a model's sizes; it is planned before it has values."""
    settings = [*size.overrides, "data.accumulate=1", *overrides]
    recipe = Recipe.named(name, settings)
    objectives, count = build_all(recipe), recipe.data.batch_size
    with tempfile.TemporaryDirectory() as folder:
        write_configs(model, Path(folder), tiny=size.tiny)
        backbone = models.load_meta(folder, **recipe.model.options)
    estimate = Estimate(recipe, backbone, objectives, cuda=not size.tiny)
    items = [i for i in memory_items(estimate) if i.in_training and i.name not in NOT_HERE]
    flops = estimate.trace.flops
    torch.manual_seed(0)
    dtype, empty = getattr(torch, recipe.model.dtype), backbone.net
    with default_dtype(dtype), size.device:
        net = cast(type(empty).from_config(empty.config), dtype).eval()
    setattr(backbone.pipe, backbone.net_name, net)
    if recipe.memory.base is not None:
        quantize(backbone, recipe.memory.base)
    return Subject(
        recipe,
        backbone,
        _train_state(recipe, backbone, objectives, SINGLE),
        estimate.algorithm,
        Batch(texts(backbone, count), texts(backbone, count), torch.arange(count)),
        tflop=flops / 1e12,
        planned=sum(item.size for item in items),
    )


def now(device: torch.device) -> float:
    """Seconds, after the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def free(size: Size) -> None:
    """Give back what is no longer used, and begin to count the peak anew."""
    gc.collect()  # networks and their modules refer to each other
    if size.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Context in which new parameters are of a precision, so that none is made larger first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def texts(backbone: Backbone, batch: int) -> Conditioning:
    """Random encoded prompts, of the shapes that the family's real ones have."""
    shapes = dummy_conditioning(backbone, batch, next(backbone.net.parameters()).dtype).tensors

    def filled(blank: Tensor) -> Tensor:
        return torch.randn(blank.shape, dtype=blank.dtype, device=backbone.device)

    found = {name: filled(each) for name, each in shapes.items() if each.is_floating_point()}
    if "guidance" in found:
        found["guidance"] = torch.full_like(found["guidance"], backbone.default_guidance)
    return Conditioning(found)
