"""A ComfyUI workflow that walks a student's grid: what its *Save (API Format)* would write.

ComfyUI samples a flow at noise levels of the model's own table. Its scheduler `simple` takes every
(1000 / steps)-th of them, which are the student's base sigmas, so that a node with the student's
shift makes it walk the student's grid. Where a grid has another end, `ManualSigmas` lists it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from fewstep.export.base import STEPS, Student
from fewstep.models.comfyui import ComfyUI

FILE = "workflow_api.json"
"""Its name in an exported folder."""

Link = list[Any]  # id of a node, and which of its outputs
_MOST_SHIFT = 100.0  # the largest that ComfyUI's nodes take
_TOKEN, _FEW, _MANY = 16, 256, 4096  # pixels a token's side, and tokens that FLUX's shift refers to


@dataclass
class _Graph:
    """A workflow: id of a node -> its class and inputs, where links name other nodes."""

    nodes: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, **inputs: Any) -> Link:
        """Adds a node; its first output."""
        key = str(len(self.nodes) + 1)
        self.nodes[key] = {"class_type": kind, "inputs": inputs}
        return [key, 0]


def sigmas_of(student: Student) -> list[float]:
    """The student's grid as ComfyUI counts noise, with the final 0.

    Of models with trained times ComfyUI's sigma is b / a, on our path sigma / (1 - sigma).
    """
    height, width = student.size
    shift = student.backbone.effective_shift(
        student.shift, height, width, terminal=student.terminal
    )
    sigmas = shift(torch.tensor(student.base_sigmas, dtype=torch.float64)).tolist()
    if student.backbone.prediction != "velocity":
        sigmas = [sigma / (1 - sigma) for sigma in sigmas]
    return [*sigmas, 0.0]


def workflow(
    student: Student, prompt: str, *, lora: str | None = None, network: str | None = None
) -> dict[str, Any] | None:
    """The workflow that draws a prompt, by id of the node; None where ComfyUI cannot draw it.

    Args:
        student: The student.
        prompt: The prompt.
        lora: Its LoRA's file, to be loaded on top of the base; None: there is none.
        network: Its network's file, in the base's place; None: there is none.
    """
    comfy = student.backbone.comfyui
    if comfy is None or not _knows_the_times(comfy, student):
        return None
    graph = _Graph()
    model, clip, vae = _loaders(graph, comfy, network)
    if lora is not None:
        model = graph.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
    kind, more = comfy.encode
    positive = graph.add(kind, clip=clip, **{comfy.prompt: prompt}, **more)
    call = student.stock_call
    if student.backbone.guidance == "embedded":
        guidance = call["guidance_scale"]
        positive = graph.add("FluxGuidance", conditioning=positive, guidance=guidance)
    height, width = student.size
    frames = {"length": call["num_frames"]} if "num_frames" in call else {}
    latent = graph.add(comfy.latent, width=width, height=height, batch_size=1, **frames)
    ends = {
        "positive": positive,
        "negative": graph.add("ConditioningZeroOut", conditioning=positive),  # unused at cfg 1
        "latent_image": latent,
    }
    drawn = _sampling(graph, comfy, student, model, ends)
    pictures = graph.add("VAEDecode", samples=drawn, vae=vae)
    graph.add("SaveImage", images=pictures, filename_prefix=f"{STEPS}-steps")
    return graph.nodes


def _loaders(graph: _Graph, comfy: ComfyUI, network: str | None) -> tuple[Link, Link, Link]:
    """Model, text encoders and VAE."""
    model = clip = vae = None
    if comfy.vae is None:
        model = graph.add("CheckpointLoaderSimple", ckpt_name=comfy.base)
        clip, vae = [model[0], 1], [model[0], 2]
    if network is not None or model is None:
        name = network or comfy.base
        model = graph.add("UNETLoader", unet_name=name, weight_dtype="default")
    if comfy.clip is not None:
        clip = graph.add(comfy.clip[0], **comfy.clip[1])
    if comfy.vae is not None:
        vae = graph.add("VAELoader", vae_name=comfy.vae)
    assert clip is not None and vae is not None  # a checkpoint, or named
    return model, clip, vae


def _sampling(
    graph: _Graph, comfy: ComfyUI, student: Student, model: Link, ends: dict[str, Link]
) -> Link:
    """Euler's method on the student's grid: latents."""
    shift = None if comfy.shift is None else _shift_inputs(comfy.shift, student)
    if comfy.shift is not None and shift is None:
        listed = ", ".join(f"{sigma:.6f}" for sigma in sigmas_of(student))
        sigmas = graph.add("ManualSigmas", sigmas=listed)
        sampler = graph.add("KSamplerSelect", sampler_name="euler")
        how = {"add_noise": True, "noise_seed": 0, "cfg": 1.0, "sampler": sampler}
        return graph.add("SamplerCustom", model=model, sigmas=sigmas, **how, **ends)
    if comfy.shift is not None and shift is not None:
        model = graph.add(comfy.shift, model=model, **shift)
    else:
        model = _prediction(graph, student, model)
    how = {"seed": 0, "steps": STEPS, "cfg": 1.0, "denoise": 1.0}
    how |= {"sampler_name": "euler", "scheduler": "simple"}
    return graph.add("KSampler", model=model, **how, **ends)


def _shift_inputs(node: str, student: Student) -> dict[str, Any] | None:
    """What a shift node is told for `simple` to walk the student's grid; None: it cannot."""
    shift = _static_shift(student.base_sigmas, sigmas_of(student)[:-1])
    if shift is None or not 0 < shift <= _MOST_SHIFT:
        return None
    if node != "ModelSamplingFlux":
        return {"shift": shift}
    mu, (height, width) = math.log(shift), student.size
    if mu < 0:
        return None
    settings = student.backbone.scheduler_settings
    low, high = settings.base_shift, settings.max_shift
    there = low + (high - low) * (height * width / _TOKEN**2 - _FEW) / (_MANY - _FEW)
    if not (settings.use_dynamic_shifting and math.isclose(mu, there, abs_tol=1e-9)):
        low = high = mu  # else other sizes get the model's own shift, too
    return {"base_shift": low, "max_shift": high, "width": width, "height": height}


def _static_shift(base: list[float], sigmas: list[float]) -> float | None:
    """The static shift that makes these sigmas of base sigmas; None: none does."""
    u, sigma = base[1], sigmas[1]
    shift = sigma * (1 - u) / (u * (1 - sigma))
    made = [shift * each / (1 + (shift - 1) * each) for each in base]
    same = all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(made, sigmas, strict=True))
    return shift if same else None


def _knows_the_times(comfy: ComfyUI, student: Student) -> bool:
    """Whether ComfyUI's table of trained times is the model's, where it has one."""
    if comfy.betas is None:
        return True
    settings = student.backbone.scheduler_settings
    theirs = settings.beta_schedule, settings.beta_start, settings.beta_end
    plain = settings.num_train_timesteps == 1000 and settings.trained_betas is None
    return plain and theirs == comfy.betas


def _prediction(graph: _Graph, student: Student, model: Link) -> Link:
    """A model told what its network predicts, where that is not what ComfyUI expects of it."""
    settings = student.backbone.scheduler_settings
    zero = settings.rescale_betas_zero_snr
    if settings.prediction_type == "epsilon" and not zero:
        return model
    kind = "eps" if settings.prediction_type == "epsilon" else "v_prediction"
    return graph.add("ModelSamplingDiscrete", model=model, sampling=kind, zsnr=zero)
