"""What bench/gpu.py leaves out: determinism, resuming, where time goes, quantised bases, encoders.

    python bench/gpu_checks.py                             all parts, about seven minutes on one GPU
    python bench/gpu_checks.py --parts attention,repeat    some; earlier results of others are kept
    python bench/gpu_checks.py --tiny --json               at toy size on a processor; no file

Results are written to bench/results/gpu-checks-<hardware>.json, or to the folder given by --out.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from gpu_subjects import FLUX, LATE, SD3, Size, Subject, build, default_dtype, free, now
from isolated import Parts, main
from kernels import profiled
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5Config, T5EncoderModel

from fewstep.core.noise import Draws
from fewstep.core.schedules import RandomGrid
from fewstep.models import shipped_configs
from fewstep.train.determinism import deterministic
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER
from fewstep.train.step import iteration

MODELS = {"sd3-medium": SD3, "sd3-medium-lora": SD3, "flux.1-dev-lora": FLUX}
"""Shipped recipes and the models they train."""


def subject(recipe: str, size: Size, *settings: str) -> Subject:
    """A recipe in training, one sample at a time and without a running mean."""
    return build(MODELS[recipe], recipe, ["ema=null", "data.batch_size=1", *settings], size)


def train(subject: Subject, size: Size, iterations: int, *, first: int = LATE) -> list[float]:
    """Seconds of each of some iterations with grids of four steps."""
    algorithm = replace(subject.algorithm, grid=RandomGrid(min_steps=4, max_steps=4))
    times = [now(size.device)]
    for step in range(first, first + iterations):
        iteration(subject.train_state, [subject.batch], Draws(0, step, size.device), algorithm)
        times.append(now(size.device))
    return [round(end - start, 4) for start, end in pairwise(times)]


def allocated_gb(size: Size, *, peak: bool) -> float | None:
    """What torch has allocated, now or at most; None without a GPU."""
    if size.device.type != "cuda":
        return None
    count = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return round(count / 1e9, 3)


# ------------------------------------------------------------------------------------- attention


def attention(size: Size) -> dict[str, Any]:
    """Attention of SD3-Medium at 1024 x 1024: chosen backend, time, and whether gradients repeat.

    `strict` is what `train.deterministic` sets. Errors are relative to float32, in the norm.
    """
    results: dict[str, Any] = {"cudnn": torch.backends.cudnn.version()}
    with sdpa_kernel(SDPBackend.MATH):
        truth = _attend_and_back([x.detach().float().requires_grad_() for x in _inputs(size)])
    for name, enabled in (("default", False), ("strict", True)):
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = False
        results[name] = or_error(lambda: _attention_figures(size, truth))
        if enabled or size.tiny:
            continue
        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            with sdpa_kernel(getattr(SDPBackend, backend)):
                results[backend] = or_error(lambda: _attention_figures(size, truth))
    torch.use_deterministic_algorithms(False)
    return results


def _inputs(size: Size) -> list[Tensor]:
    """Random queries, keys and values, in the layout that the network's projections give."""
    heads, tokens, width = (2, 80, 16) if size.tiny else (24, 4429, 64)
    generator = torch.Generator(size.device).manual_seed(0)
    options: Any = {"device": size.device, "dtype": torch.bfloat16, "generator": generator}
    flat = [torch.randn(1, tokens, heads * width, **options) for _ in "qkv"]
    return [x.view(1, tokens, heads, width).transpose(1, 2).requires_grad_() for x in flat]


@torch.no_grad()
def _attend(inputs: list[Tensor]) -> list[Tensor]:
    return [F.scaled_dot_product_attention(*inputs)]


def _attend_and_back(inputs: list[Tensor]) -> list[Tensor]:
    output = F.scaled_dot_product_attention(*inputs)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]


def _attention_figures(size: Size, truth: list[Tensor]) -> dict[str, Any]:
    inputs, choose = _inputs(size), getattr(torch, "_fused_sdp_choice", None)
    first = _attend_and_back(inputs)
    return {
        "backend": SDPBackend(choose(*inputs)).name if choose else None,
        "repeats": all(
            torch.equal(*pair)
            for _ in range(5)
            for pair in zip(first, _attend_and_back(inputs), strict=True)
        ),
        "errors": [
            round(float((found.float() - wanted).norm() / wanted.norm()), 5)
            for found, wanted in zip(first, truth, strict=True)
        ],
        "forward_ms": _milliseconds(_attend, size),
        "both_ms": _milliseconds(_attend_and_back, size),
    }


def _milliseconds(call: Callable[[list[Tensor]], object], size: Size) -> float:
    """Mean time of a call after the first."""
    inputs, times = _inputs(size), 2 if size.tiny else 20
    call(inputs)
    start = now(size.device)
    for _ in range(times):
        call(inputs)
    return round((now(size.device) - start) / times * 1e3, 3)


def or_error(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a call returns, or its error as a result."""
    try:
        return call()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


# ------------------------------------------------------------------------------------ determinism


def repeat(size: Size) -> dict[str, Any]:
    """Two iterations of SD3-Medium by LoRA, twice from the same start: are weights equal?"""
    results = {}
    for name, wanted in (("deterministic", True), ("not deterministic", False)):
        with deterministic(wanted):
            results[name] = or_error(lambda: _repeated(size))
        free(size)
    return results


def _repeated(size: Size) -> dict[str, Any]:
    digests, seconds = [], []
    for _ in range(2):
        free(size)
        trained = subject("sd3-medium-lora", size)
        seconds.append(train(trained, size, 2))
        digest = hashlib.sha256()
        for role in (STUDENT, FAKE_TEACHER):
            for parameter in trained.train_state.roles.parameters(role).values():
                digest.update(parameter.detach().cpu().numpy().tobytes())
        digests.append(digest.hexdigest()[:12])
        del trained
    return {"equal": digests[0] == digests[1], "digests": digests, "seconds": seconds}


# ----------------------------------------------------------------------------------------- resume

COMMON = (
    "checkpoint.every=3", "checkpoint.keep_last=9", "preview.every=3", "preview.count=2",
    "preview.teacher.steps=2", "preview.score=drift", "health.every=3",
    "health.count=2", "train.cooldown=0",
)  # fmt: skip
KINDS = {
    "full, float32": (),
    "full, bfloat16, compiled": ("model.dtype=bfloat16", "student.compile=true"),
    "lora, bfloat16, int8": ("model.dtype=bfloat16", "student.mode=lora", "memory.base=int8",
        "student.gradient_checkpointing=true"),
}  # fmt: skip


def resume(size: Size) -> dict[str, Any]:
    """The demo for six steps, against three and a resumed three: are all saved tensors equal?"""
    results: dict[str, Any] = {}
    for kind, settings in KINDS.items():
        if size.tiny and "compiled" in kind:
            continue
        with tempfile.TemporaryDirectory() as folder:
            shared = [*COMMON, *settings, f"train.device={size.device}"]
            results[kind] = _resumed(Path(folder), shared + ["data.batch_size=4"] * size.tiny)
        print(json.dumps(results), flush=True)
    return results


def _resumed(folder: Path, settings: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    whole, half = folder / "whole", folder / "half"
    for runs in ({whole: (6,), half: (3,)}, {half: (6, "--resume")}):
        running = [_distill(out, settings, *options) for out, options in runs.items()]
        errors = [process.communicate()[1] for process in running]
        for process, error in zip(running, errors, strict=True):
            if process.returncode:
                return {"error": (error.strip().splitlines() or ["no message"])[-1][:200]}
    last = Path("checkpoints", "step-00000006")
    differ = [
        f"{file.stem}/{key}"
        for file in sorted((whole / last).glob("*.safetensors"))
        for key, tensor in load_file(file).items()
        if not torch.equal(tensor, load_file(half / last / file.name)[key])
    ]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    return {
        "equal": not differ,
        "differ": len(differ),
        "first": differ[:2],
        "step_seconds": [round(line["seconds"], 3) for line in lines if "seconds" in line],
        "all_seconds": round(time.perf_counter() - start, 1),
    }


def _distill(out: Path, settings: list[str], steps: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fewstep", "distill", "demo", "--out", str(out), *options]
    for setting in (f"train.steps={steps}", *settings):
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


# ----------------------------------------------------------------------------------------- profile


def where_time_goes(size: Size) -> dict[str, Any]:
    """Two iterations of SD3-Medium, full and by LoRA: device time, kernels, waits of the host."""
    results = {}
    for recipe in ("sd3-medium", "sd3-medium-lora"):
        results[recipe] = or_error(lambda recipe=recipe: _profiled(recipe, size))
        print(json.dumps(results), flush=True)
        free(size)
    return results


def _profiled(recipe: str, size: Size) -> dict[str, Any]:
    trained = subject(recipe, size)
    train(trained, size, 2)
    plain = train(trained, size, 2, first=LATE + 2)
    found = profiled(lambda: train(trained, size, 2, first=LATE + 4))
    start = time.perf_counter()
    for _ in range(5):
        with trained.train_state.roles.active(STUDENT), trained.train_state.roles.active(TEACHER):
            pass
    switching = (time.perf_counter() - start) / 5
    return {
        "seconds": plain,
        **found,
        "switching_roles_ms": round(switching * 1e3, 3),
    }


# ------------------------------------------------------------------------- bases, encoders and VAE


def bases(size: Size) -> dict[str, Any]:
    """FLUX.1-dev by LoRA on each base: seconds to encode it, of an iteration, and memory."""
    results: dict[str, Any] = {}
    for base in ("nf4", "int8", "null"):
        free(size)
        results[base] = or_error(lambda base=base: _on_base(base, size))
        print(json.dumps(results), flush=True)
    return results


def _on_base(base: str, size: Size) -> dict[str, Any]:
    start = now(size.device)
    trained = subject("flux.1-dev-lora", size, f"memory.base={base}")
    building = now(size.device) - start
    free(size)
    return {
        "build_seconds": round(building, 1),
        "seconds": train(trained, size, 2),
        "peak_gb": allocated_gb(size, peak=True),
        "planned_gb": round(trained.planned / 1e9, 3),
    }


@torch.no_grad()
def encoders(size: Size) -> dict[str, Any]:
    """Activations that `fewstep plan` leaves out: T5-XXL on prompts, the VAE on 1024 x 1024."""
    parts = shipped_configs.components(SD3)
    toy = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4}
    settings: Mapping[str, Any] = {**parts["text_encoder_3"][1], **(toy if size.tiny else {})}
    with default_dtype(torch.bfloat16), size.device:
        t5 = T5EncoderModel(T5Config(**settings)).eval()
        vae = diffusers.AutoencoderKL(**parts["vae"][1]).eval()
    results, prompts, side = {}, 2 if size.tiny else 4, 16 if size.tiny else 128
    for tokens in (256, 512):
        ids = torch.zeros(prompts, tokens, dtype=torch.long, device=size.device)
        results[f"T5, {prompts} x {tokens} tokens"] = _cost(size, t5, ids)
    for count in (1, 4):
        latents = torch.randn(count, 16, side, side, device=size.device, dtype=torch.bfloat16)
        results[f"VAE, {count} pictures"] = _cost(size, vae.decode, latents)
    return results


def _cost(size: Size, call: Callable[[Tensor], object], x: Tensor) -> dict[str, Any]:
    free(size)
    before, start = allocated_gb(size, peak=False), now(size.device)
    call(x)
    seconds, peak = now(size.device) - start, allocated_gb(size, peak=True)
    beyond = None if peak is None or before is None else round(peak - before, 3)
    return {"seconds": round(seconds, 3), "gb_beyond_weights": beyond}


PARTS: Parts = {
    "attention": (attention, 60),
    "repeat": (repeat, 90),
    "resume": (resume, 150),
    "profile": (where_time_goes, 75),
    "bases": (bases, 90),
    "encoders": (encoders, 60),
}
"""525 seconds in all."""


if __name__ == "__main__":
    main(__file__, __doc__, PARTS, prefix="gpu-checks")
