"""ComfyUI workflows: valid graphs of its core nodes, whose sampler walks the student's own grid.

`CORE` is what the nodes of ComfyUI take and give, `walked` the sigmas at which it samples; both are
written down from its published source (comfy/samplers.py `simple_scheduler`,
comfy/model_sampling.py, comfy_extras/nodes_model_advanced.py).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from fewstep import models
from fewstep.export.base import Student
from fewstep.export.workflow import FILE, sigmas_of, workflow
from fewstep.inference.load import export_model
from fewstep.models import shipped_configs

TEXT = {"clip": "CLIP"}
LATENT = {"width": int, "height": int, "batch_size": int}
ENDS = {"positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"}
CORE = {  # class -> inputs, outputs
    "CheckpointLoaderSimple": ({"ckpt_name": str}, ["MODEL", "CLIP", "VAE"]),
    "UNETLoader": ({"unet_name": str, "weight_dtype": str}, ["MODEL"]),
    "CLIPLoader": ({"clip_name": str, "type": str}, ["CLIP"]),
    "DualCLIPLoader": ({"clip_name1": str, "clip_name2": str, "type": str}, ["CLIP"]),
    "TripleCLIPLoader": (dict.fromkeys(("clip_name1", "clip_name2", "clip_name3"), str), ["CLIP"]),
    "VAELoader": ({"vae_name": str}, ["VAE"]),
    "LoraLoaderModelOnly": (
        {"model": "MODEL", "lora_name": str, "strength_model": float},
        ["MODEL"],
    ),
    "CLIPTextEncode": ({"text": str} | TEXT, ["CONDITIONING"]),
    "CLIPTextEncodeLumina2": (
        {"system_prompt": str, "user_prompt": str} | TEXT,
        ["CONDITIONING"],
    ),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": float}, ["CONDITIONING"]),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, ["CONDITIONING"]),
    "EmptyLatentImage": (LATENT, ["LATENT"]),
    "EmptySD3LatentImage": (LATENT, ["LATENT"]),
    "EmptyFlux2LatentImage": (LATENT, ["LATENT"]),
    "EmptyHunyuanLatentVideo": (LATENT | {"length": int}, ["LATENT"]),
    "ModelSamplingSD3": ({"model": "MODEL", "shift": float}, ["MODEL"]),
    "ModelSamplingAuraFlow": ({"model": "MODEL", "shift": float}, ["MODEL"]),
    "ModelSamplingFlux": (
        {"model": "MODEL", "max_shift": float, "base_shift": float, "width": int, "height": int},
        ["MODEL"],
    ),
    "ModelSamplingDiscrete": ({"model": "MODEL", "sampling": str, "zsnr": bool}, ["MODEL"]),
    "KSampler": (
        {"model": "MODEL", "seed": int, "steps": int, "cfg": float, "sampler_name": str}
        | {"scheduler": str, "denoise": float, **ENDS},
        ["LATENT"],
    ),
    "KSamplerSelect": ({"sampler_name": str}, ["SAMPLER"]),
    "ManualSigmas": ({"sigmas": str}, ["SIGMAS"]),
    "SamplerCustom": (
        {"model": "MODEL", "add_noise": bool, "noise_seed": int, "cfg": float}
        | {"sampler": "SAMPLER", "sigmas": "SIGMAS", **ENDS},
        ["LATENT", "LATENT"],
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, []),
}
PUBLISHED = {  # at 1024x1024: where the network is asked
    "stabilityai/stable-diffusion-3-medium-diffusers": [1, 0.9, 0.75, 0.5],
    "black-forest-labs/FLUX.1-dev": [1, 0.9045, 0.7595, 0.5128],
    "fal/AuraFlow-v0.3": [1, 0.8385, 0.6337, 0.3658],
    "Alpha-VLLM/Lumina-Image-2.0": [1, 0.9474, 0.8571, 0.6667],
    "stabilityai/stable-diffusion-xl-base-1.0": [14.6146, 4.0817, 1.6129, 0.6932],
    "Qwen/Qwen-Image": [1, 0.7667, 0.4556, 0.02],
}


def refuse_broken(graph):
    """Every node is one of ComfyUI's, with the inputs that it needs, each of the right kind."""
    for node in graph.values():
        inputs, _ = CORE[node["class_type"]]
        assert node["inputs"].keys() == inputs.keys(), node
        for name, value in node["inputs"].items():
            wanted = inputs[name]
            if isinstance(wanted, str):
                key, output = value
                assert CORE[graph[key]["class_type"]][1][output] == wanted, node
            else:
                assert type(value) is wanted or (wanted is float and type(value) is int), node


def walked(graph, betas=None):
    """The sigmas that ComfyUI's sampler of a workflow walks, and the model's nodes before it."""
    kinds = {node["class_type"]: node["inputs"] for node in graph.values()}
    if "SamplerCustom" in kinds:
        found = re.findall(r"[-+]?(?:\d*\.*\d+)", kinds["ManualSigmas"]["sigmas"])
        assert kinds["SamplerCustom"]["cfg"] == 1 and kinds["KSamplerSelect"]["sampler_name"] == (
            "euler"
        )
        return [float(sigma) for sigma in found]
    sampler = kinds["KSampler"]
    assert (sampler["cfg"], sampler["sampler_name"], sampler["scheduler"]) == (1, "euler", "simple")
    table = table_of(kinds, betas)
    step = len(table) / sampler["steps"]
    return [*(float(table[-(1 + int(i * step))]) for i in range(sampler["steps"])), 0.0]


def table_of(kinds, betas):
    """ComfyUI's table of sigmas, increasing, of the model that is sampled."""
    if flux := kinds.get("ModelSamplingFlux"):
        slope = (flux["max_shift"] - flux["base_shift"]) / (4096 - 256)
        tokens = flux["width"] * flux["height"] / (8 * 8 * 2 * 2)
        mu = tokens * slope + flux["base_shift"] - slope * 256
        times = torch.arange(1, 10001, dtype=torch.float64) / 10000
        return math.exp(mu) / (math.exp(mu) + (1 / times - 1))
    for name in ("ModelSamplingSD3", "ModelSamplingAuraFlow"):
        if name in kinds:
            shift, times = kinds[name]["shift"], torch.arange(1, 1001, dtype=torch.float64) / 1000
            return shift * times / (1 + (shift - 1) * times)
    schedule, start, end = betas
    power = 2 if schedule == "scaled_linear" else 1
    steps = torch.linspace(start ** (1 / power), end ** (1 / power), 1000, dtype=torch.float64)
    kept = (1 - steps**power).cumprod(0)
    if kinds.get("ModelSamplingDiscrete", {}).get("zsnr"):
        root = kept.sqrt()
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        kept[-1] = 4.8973451890853435e-08
    return ((1 - kept) / kept).sqrt()


def student_of(backbone, size, **grid):
    return Student(
        backbone=backbone,
        net=backbone.net,
        adapter="student",
        step=1,
        label="a run",
        folder=Path("run"),
        teacher="owner/model",
        size=size,
        **grid,
    )


def drawable():
    """A published model, whose configurations are shipped, of each family that ComfyUI loads."""
    for family in models.FAMILIES.all().values():
        repos = [each.repo for each in family.models if each.repo in shipped_configs.available()]
        if family.comfyui is not None and repos:
            yield pytest.param(family, repos[0], id=repos[0])


@pytest.mark.parametrize(("family", "repo"), drawable())
def test_comfyui_walks_the_grid_of_a_student_of(family, repo):
    backbone = models.load_meta(shipped_configs.folder_of(repo), force=True)
    for size in ((1024, 1024), (768, 1344)):
        student = student_of(backbone, size)
        for files in ({"lora": "a.safetensors"}, {"network": "b.safetensors"}):
            graph = workflow(student, "a ring", **files)
            refuse_broken(graph)
            got = walked(graph, family.comfyui.betas)
            assert got == pytest.approx(sigmas_of(student), rel=2e-5, abs=1e-6)
        if size == (1024, 1024) and repo in PUBLISHED:
            assert got[:-1] == pytest.approx(PUBLISHED[repo], abs=1e-4)
    if family.comfyui.betas is not None:
        times = student.stock_call["timesteps"]
        table = table_of({}, family.comfyui.betas)
        assert got[:-1] == pytest.approx([float(table[time]) for time in times], rel=1e-4)


@pytest.mark.parametrize("grid", [{"shift": 1.5}, {"terminal": 0.05}, {"terminal": None}])
def test_comfyui_walks_a_grid_of_the_students_own(pipeline_folder, grid):
    backbone = models.load_meta(pipeline_folder, max_sequence_length=16)
    student = student_of(backbone, (64, 64), **grid)
    graph = workflow(student, "a ring", lora="a.safetensors")
    refuse_broken(graph)
    assert walked(graph) == pytest.approx(sigmas_of(student), abs=1e-6)
    kinds = {node["class_type"] for node in graph.values()}
    assert ("ManualSigmas" in kinds) == (grid.get("terminal") is not None)


def test_an_export_has_the_workflow_that_loads_it(make_run):
    exported = export_model(make_run("lora"), format="comfyui")
    graph = json.loads((exported / FILE).read_text(encoding="utf-8"))
    refuse_broken(graph)
    kinds = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert (exported / kinds["LoraLoaderModelOnly"]["lora_name"]).is_file()
    assert kinds["LoraLoaderModelOnly"]["strength_model"] == 1
    assert kinds["CLIPTextEncode"]["text"] == "small red circle left"
