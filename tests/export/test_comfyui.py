"""LoRAs for ComfyUI: every layer is mapped, and patches the weight that diffusers patches.

``data/comfyui/FAMILY.json`` is what ComfyUI's own loader accepts, for tiny depths: for each layer
under its diffusers name the weight that it belongs to there (``target``, from row ``start`` where
several share one), the names that are accepted for it, and those for the whole of that weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fewstep import models
from fewstep.config import LoraRecipe
from fewstep.export.base import find_format
from fewstep.export.formats.diffusers import merge_adapters
from fewstep.inference.load import export_model
from fewstep.models.lora import lora_layers
from fewstep.train.memory.adapters import add_adapters
from refusals import refuses
from tiny import discover

TABLES = Path(__file__).parent.parent / "data" / "comfyui"
NATIVE = {  # whose diffusers names ComfyUI does not accept: the end of a layer's name -> its own
    "lumina2": {
        **{f"attn.to_{each}": ("attention.qkv", row) for row, each in enumerate("qkv")},
        "attn.to_out.0": ("attention.out", 0),
        **{f"feed_forward.linear_{i}": (f"feed_forward.w{i}", 0) for i in (1, 2, 3)},
    },
    "wan": {
        **{f"attn1.to_{each}": (f"self_attn.{each}", 0) for each in "qkv"},
        **{f"attn2.to_{each}": (f"cross_attn.{each}", 0) for each in "qkv"},
        "attn1.to_out.0": ("self_attn.o", 0),
        "attn2.to_out.0": ("cross_attn.o", 0),
        "ffn.net.0.proj": ("ffn.0", 0),
        "ffn.net.2": ("ffn.2", 0),
    },
    "pixart": None,
}
SAME = {"klein": "flux2"}
UNKNOWN = ("longcat", "sana")
MAPPED = {name: tiny for name, tiny in discover().items() if tiny.family not in UNKNOWN}


NUMBER = re.compile(r"(?<=[._])\d+(?=[._]|$)")


def renumbered(name: str, layer: str) -> str:
    """A name with the numbers of a layer's, in order, as far as they go."""
    own = iter(NUMBER.findall(layer))
    return NUMBER.sub(lambda old: next(own, old[0]), name)


def entry(family: str, layer: str) -> dict[str, Any]:
    """The row of ComfyUI's map for a layer, of any block number."""
    if family in NATIVE:
        rules = NATIVE[family]
        if rules is None:
            return {"target": layer, "start": 0, "accepted": [f"transformer.{layer}"], "whole": []}
        end = next(end for end in rules if layer.endswith(f".{end}"))
        target, start = layer.removesuffix(end) + rules[end][0], rules[end][1]
        stacked = sum(each[0] == rules[end][0] for each in rules.values()) > 1
        names = [f"diffusion_model.{target}"]
        return {"target": target, "start": start, "accepted": [] if stacked else names,
            "whole": names if stacked else []}  # fmt: skip
    file = TABLES / f"{SAME.get(family, family)}.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    if layer in table:
        return table[layer]
    likeness = NUMBER.sub("#", layer)
    row = next(row for name, row in table.items() if NUMBER.sub("#", name) == likeness)
    names = {key: [renumbered(name, layer) for name in row[key]] for key in ("accepted", "whole")}
    return row | names | {"target": renumbered(row["target"], layer)}


def patches(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is added to weights at strength 1, by the stem of the keys, as ComfyUI reads them."""
    found = {}
    for key, down in named.items():
        stem, _, side = key.rpartition(".lora_")
        if side in ("A.weight", "down.weight"):
            up = named[f"{stem}.lora_B.weight" if side == "A.weight" else f"{stem}.lora_up.weight"]
            scale = float(named.get(f"{stem}.alpha", len(down))) / len(down)
            found[stem] = scale * up.double() @ down.double()
    return found


@pytest.mark.parametrize("name", MAPPED)
def test_every_layer_is_mapped_and_patched_as_diffusers_does(name, tmp_path):
    tiny = MAPPED[name]
    tiny.build(tmp_path / "model")
    backbone = models.load(tmp_path / "model", **tiny.options)
    net, before = backbone.net, {}
    add_adapters(backbone, net, LoraRecipe(rank=2), ["student"], seed=0)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in net.named_parameters():
        if ".lora_B." in key:
            parameter.data = torch.randn(parameter.shape, generator=generator)
        if ".base_layer.weight" in key:
            before[key.replace(".base_layer", "")] = parameter.detach().double().clone()
    named = backbone.comfyui_lora(lora_layers(net, "student"))
    merge_adapters(net)
    weights = dict(net.named_parameters())
    deltas = {
        key.removesuffix(".weight"): weights[key].double() - old for key, old in before.items()
    }

    found, whole, rows = patches(named), {}, {}
    for layer, delta in deltas.items():
        row = entry(tiny.family, layer)
        stems = [stem for stem in row["accepted"] if stem in found]
        if stems:
            assert len(stems) == 1
            torch.testing.assert_close(found.pop(stems[0]), delta, rtol=1e-4, atol=1e-5)
        else:
            (stem,) = [stem for stem in row["whole"] if stem in found]
            whole[stem] = row["target"]
            rows.setdefault(row["target"], []).append((row["start"], delta))
    for stem, target in whole.items():
        stacked = torch.cat([delta for _, delta in sorted(rows[target], key=lambda each: each[0])])
        torch.testing.assert_close(found.pop(stem), stacked, rtol=1e-4, atol=1e-5)
    assert deltas and not found


def test_families_that_comfyui_does_not_map_are_refused():
    for family in UNKNOWN:
        with refuses("unsupported", family):
            models.FAMILIES.get(family).comfyui_lora({})


def test_a_run_is_exported_as_one_file_and_says_how_to_draw(make_run):
    exported = export_model(make_run("lora"), format="comfyui")
    (file,) = exported.glob("*.safetensors")
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert file.name in card and "cfg 1" in card
    assert all(key.startswith("transformer.") for key in load_file(file))


def test_sd_scripts_is_served_where_it_reads_the_names():
    kohya = find_format("kohya", "lora")
    kohya.check("lora", "sdxl")
    with refuses("unsupported"):
        kohya.check("lora", "sd3")
    with refuses("unsupported"):
        kohya.check("full", "sdxl")
