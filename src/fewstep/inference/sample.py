"""Prompts in, pictures and a manifest out.

`sample_images` repeats, bit for bit, what the stock diffusers pipeline does for one prompt with the
same generator, so it takes the pictures one at a time: kernels that see a larger batch may round
the last bit otherwise. `sample_batch` is the quick way for evaluation, where it does not matter.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.core.schedules import Terminal, few_step_sigmas, with_shift
from fewstep.core.solver import sample
from fewstep.core.types import Conditioning, VelocityFn
from fewstep.inference.source import set_aside
from fewstep.models.base import Backbone
from fewstep.models.latents import pictures_at_once
from fewstep.models.trial import require_finite
from fewstep.train.memory.offload import offload_vae
from fewstep.utils.disk import writing
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import check_writable, made, replacing, settle
from fewstep.utils.resources import expand

if TYPE_CHECKING:
    from fewstep.inference.load import Model

Network: TypeAlias = nn.Module | VelocityFn
"""What is sampled: a network of the backbone's architecture, or its velocity as a function."""

Encode: TypeAlias = Callable[[list[str]], Conditioning]

MOST_STEPS = 1000
MANIFEST = "manifest.jsonl"
_ROW = '{"file": "'  # how each of its lines begins
_LONGEST_ROW = 2**20  # characters of a manifest that are looked at
_FRAME_MS = 62  # 16 frames a second, as Wan's videos are meant to run
_DECODED_AT_ONCE = 16  # pictures are larger than latents: more at a time is slower, and memory


@dataclass(frozen=True)
class Sampler:
    """How pictures are drawn from a network: Euler steps, guidance (1 is off) and size in pixels.

    `height` and `width` of None mean the size that the backbone was trained at. `shift` is the
    static shift of the grid, None is the model's own; `terminal` is where the grid ends before 0.
    """

    steps: int = 4
    guidance: float = 1.0
    height: int | None = None
    width: int | None = None
    shift: float | None = None
    terminal: Terminal = field(default="model", repr=False)

    def __post_init__(self) -> None:
        """Refuses step counts and guidance that mean nothing."""
        if not 1 <= self.steps <= MOST_STEPS:
            raise FewstepError(
                f"steps must be 1 to {MOST_STEPS}, not {self.steps}", code="out-of-range"
            )
        if not self.guidance >= 1.0:
            raise FewstepError(
                f"guidance must be at least 1 (1 is off), not {self.guidance}", code="out-of-range"
            )

    @classmethod
    def of(
        cls,
        model: Model,
        steps: int = 4,
        guidance: float = 1.0,
        *,
        height: int | None = None,
        width: int | None = None,
    ) -> Self:
        """How a model wants to be drawn: at the size and on the grid it was distilled with."""
        own_height, own_width = model.size or (None, None)
        return cls(
            steps, guidance, height or own_height, width or own_width, model.shift, model.terminal
        )

    def evaluations(self, backbone: Backbone) -> int:
        """Network evaluations per picture."""
        both = self.guidance != 1.0 and backbone.guidance == "cfg"
        return self.steps * (2 if both else 1)

    @property
    def base_sigmas(self) -> list[float]:
        """What a diffusers call takes as `sigmas=`: the grid before the model's shift."""
        return few_step_sigmas(self.steps)

    def sigmas(self, backbone: Backbone) -> Tensor:
        """The grid that the Euler loop walks: shifted, float32, with the final 0: [steps + 1]."""
        # Shifted in float32, as the scheduler does: float64 would round otherwise.
        base = torch.tensor(self.base_sigmas, dtype=torch.float32)
        shift = backbone.effective_shift(self.shift, *self.size(backbone), terminal=self.terminal)
        return with_shift(base, shift)

    def size(self, backbone: Backbone) -> tuple[int, int]:
        """Height and width in pixels."""
        if self.height and self.width:
            return self.height, self.width
        height, width = default_size(backbone)
        return self.height or height, self.width or width


def default_size(backbone: Backbone) -> tuple[int, int]:
    """Height and width in pixels that the stock pipeline draws when told nothing.

    Raises:
        FewstepError: The pipeline does not say.
    """
    trained = getattr(backbone.net.config, "sample_size", None)  # latents; not all networks say
    cells = getattr(backbone.pipe, "default_sample_size", trained)
    factor = getattr(backbone.pipe, "vae_scale_factor", None)
    if isinstance(cells, int) and factor is not None:
        return cells * factor, cells * factor
    call = inspect.signature(type(backbone.pipe).__call__).parameters
    height, width = (call[name].default if name in call else None for name in ("height", "width"))
    if not isinstance(height, int) or not isinstance(width, int):
        raise FewstepError(
            f"{backbone.source}: give height and width, the model has no default",
            code="missing-input",
        )
    return height, width


@torch.no_grad()
def sample_latents(
    backbone: Backbone,
    net: Network,
    cond: Conditioning,
    seeds: Sequence[int],
    *,
    sampler: Sampler,
) -> Tensor:
    """Clean latents [B, ...] of encoded prompts, one seed each.

    Raises:
        FewstepError: They are not finite.
    """
    device = backbone.device
    noise = backbone.draw_noise(seeds, *sampler.size(backbone)).to(device)
    velocity = guided_velocity(backbone, net, len(seeds), sampler.guidance)
    latents = sample(velocity, noise, sampler.sigmas(backbone).to(device), cond.to(device))
    require_finite(latents, f"{backbone.source / backbone.net_name}: latents", backbone.net)
    return latents


def guided_velocity(backbone: Backbone, net: Network, batch: int, guidance: float) -> VelocityFn:
    """A network's velocity for batches of this size under guidance, see `Backbone.guided`."""
    velocity = partial(backbone.velocity, net) if isinstance(net, nn.Module) else net
    return backbone.guided(velocity, batch, guidance)


@torch.no_grad()
def draw_batches(
    backbone: Backbone,
    net: Network,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampler: Sampler,
    batch: int = 64,
    encode: Encode | None = None,
) -> Iterator[Tensor]:
    """Pictures [B, 3, H, W] in [0, 1] on the CPU, float32, as they are drawn.

    Picture i starts from the noise of seeds[i]; the same as `sample_images` gives for these seeds,
    up to rounding. `encode` encodes the prompts; None: the backbone does.
    """
    if encode is None:
        backbone.prepare(prompts)
    at_once = min(_DECODED_AT_ONCE, pictures_at_once(*sampler.size(backbone)))
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        cond = (encode or backbone.encode)(list(prompts[part]))
        latents = sample_latents(backbone, net, cond, seeds[part], sampler=sampler)
        with _vae_at_work(backbone):
            for some in latents.split(at_once):
                yield _pictures(backbone, backbone.decode(some))


def sample_batch(
    backbone: Backbone,
    net: Network,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampler: Sampler,
    batch: int = 64,
    encode: Encode | None = None,
) -> Tensor:
    """All pictures of `draw_batches`, [N, 3, H, W]."""
    pictures = draw_batches(
        backbone, net, prompts, seeds, sampler=sampler, batch=batch, encode=encode
    )
    return torch.cat(list(pictures))


@torch.no_grad()
def sample_frames(
    backbone: Backbone, net: Network, prompt: str, seed: int, *, sampler: Sampler
) -> Tensor:
    """Frames [T, 3, H, W] in [0, 1] on the CPU, float32: one where the family draws pictures."""
    latents = sample_latents(backbone, net, backbone.encode([prompt]), [seed], sampler=sampler)
    with _vae_at_work(backbone):
        return _pictures(backbone, backbone.decode_video(latents))[0].transpose(0, 1)


@contextmanager
def _vae_at_work(backbone: Backbone) -> Iterator[None]:
    """Context in which the VAE is on the device; an offloaded one takes the network's place."""
    vae: Any = getattr(backbone.pipe, "vae", None)
    device = backbone.device
    if not isinstance(vae, nn.Module) or next(vae.parameters()).device == device:
        yield
        return
    with set_aside(backbone.net):
        vae.to(device)
        try:
            yield
        finally:
            offload_vae(backbone)


def _pictures(backbone: Backbone, decoded: Tensor) -> Tensor:
    """Decoded pictures on the CPU, float32 in [0, 1]; refused where they are not finite."""
    vae = getattr(backbone.pipe, "vae", None)
    require_finite(decoded, f"{backbone.source / 'vae'}: pictures", vae)
    return decoded.float().clamp(0, 1).cpu()


def sample_images(
    backbone: Backbone,
    net: Network,
    prompts: Sequence[str],
    *,
    sampler: Sampler | None = None,
    seed: int = 0,
) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1], one at a time; picture i starts from the noise of seed + i.

    With guidance off and float32 weights, pixel-identical to `pipe(prompt,
    sigmas=sampler.base_sigmas, generator=torch.Generator("cpu").manual_seed(seed + i))`.
    """
    seeds = range(seed, seed + len(prompts))
    return sample_batch(backbone, net, prompts, seeds, sampler=sampler or Sampler(), batch=1)


def to_pixels(image: Tensor) -> Image.Image:
    """One picture [3, H, W] in [0, 1] as 8-bit RGB, rounded as diffusers rounds."""
    array = image.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((array * 255).round().astype(np.uint8))


def write_samples(
    model: Model,
    prompts: Sequence[str],
    folder: Path,
    *,
    sampler: Sampler,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Draws pictures one at a time into a folder, with a manifest.jsonl of one line a picture.

    An earlier call's pictures and manifest stay as they are until all new ones are there; then
    pictures of the same names are replaced, and the manifest lists those of this call alone.

    Args:
        model: What to draw from.
        prompts: One picture each.
        folder: Made if need be.
        sampler: How to draw.
        seed: Picture i starts from the noise of seed + i.

    Yields:
        The manifest's lines, as the pictures come to be.

    Raises:
        FewstepError: As `check_samples`; or the disk refuses.
    """
    folder = expand(folder)
    check_samples(folder, prompts)
    height, width = sampler.size(model.backbone)
    sigmas = [round(float(sigma), 6) for sigma in sampler.sigmas(model.backbone)]
    with made(folder), writing(folder), _staged(folder) as stage:
        model.backbone.prepare(prompts)
        for index, prompt in enumerate(prompts):
            began = time.perf_counter()
            frames = sample_frames(model.backbone, model.net, prompt, seed + index, sampler=sampler)
            row = {
                "file": _names(index, prompt)[0 if len(frames) == 1 else 1],
                "prompt": prompt,
                "seed": seed + index,
                "steps": sampler.steps,
                "base_sigmas": sampler.base_sigmas,
                "sigmas": sigmas,
                "guidance": sampler.guidance,
                "height": height,
                "width": width,
                "model": model.label,
                "seconds": round(time.perf_counter() - began, 4),
            }
            _write(frames, stage / str(row["file"]))
            with (stage / MANIFEST).open("a", encoding="utf-8") as manifest:
                manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield row


def check_samples(folder: Path, prompts: Sequence[str]) -> None:
    """Checks that pictures of prompts may be written to a folder; nothing is left there.

    Raises:
        FewstepError: It cannot be written to, or something that `write_samples` did not write has
            the name of a file to write.
    """
    check_writable(folder)
    manifest, ours = folder / MANIFEST, False
    if not os.path.lexists(manifest):
        names = (name for index, prompt in enumerate(prompts) for name in _names(index, prompt))
        taken = [folder / name for name in names if os.path.lexists(folder / name)]
    else:
        with suppress(OSError, ValueError, RecursionError), manifest.open(encoding="utf-8") as rows:
            line = rows.readline(_LONGEST_ROW)
            ours = not line.endswith("\n") and _ROW.startswith(line[: len(_ROW)])  # torn, or empty
            first = {} if ours else json.loads(line)
            ours |= isinstance(first, dict) and {"file", "prompt", "base_sigmas"} <= first.keys()
        taken = [manifest]
    if taken and not ours:
        raise FewstepError(
            f"{taken[0]}: not written by `fewstep sample`; remove it or choose another folder",
            code="exists",
        )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Where to write: the folder itself, or beside an earlier result until the new one is whole."""
    if not (folder / MANIFEST).exists():
        yield folder
        return
    with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as name:
        stage = Path(name)
        yield stage
        settle(stage)
        for file in sorted(stage.iterdir(), key=lambda each: each.name == MANIFEST):  # it last
            file.replace(folder / file.name)


def _write(frames: Tensor, file: Path) -> None:
    """One frame [1, 3, H, W] as a picture, more as an animation that starts over."""
    first, *rest = [to_pixels(frame) for frame in frames]
    animated = {"save_all": True, "append_images": rest, "duration": _FRAME_MS, "loop": 0}
    with replacing(file, sync=False) as temporary:
        first.save(temporary, format=file.suffix[1:], **(animated if rest else {}))


def _names(index: int, prompt: str) -> tuple[str, str]:
    """Names of a prompt's file: a picture's, and an animation's."""
    name = f"{index:04}-{_slug(prompt)}"
    return f"{name}.png", f"{name}.webp"


def _slug(prompt: str) -> str:
    """The prompt's first words as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "empty"
