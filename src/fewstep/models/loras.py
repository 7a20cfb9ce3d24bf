"""LoRA files of other programs: read, matched with a model's layers, and added to its weights."""

from __future__ import annotations

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.models.libraries import third_party
from fewstep.models.lora import LORA_WEIGHTS
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_files, digest_text, read_json, regular_file
from fewstep.utils.pretrained import LoraFile
from fewstep.utils.resources import expand

_PEFT, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_DOWN = re.compile(
    r"(\.lora_A|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)(\.\w+)?\.weight$"
)
_PARTS = re.compile(
    r"(\.lora_[AB]|\.lora_(down|up)|[._]lora\.(down|up)|\.lora_linear_layer\.(down|up))"
    r"(\.\w+)?\.weight$|\.alpha$"
)


@dataclass(frozen=True)
class LowRank:
    """A change of a layer's weight, up x down.

    Attributes:
        down: [rank, in] or, of a convolution, [rank, in, h, w].
        up: [out, rank] or [out, rank, 1, 1].
    """

    down: Tensor
    up: Tensor

    def fits(self, weight: Tensor) -> bool:
        """Whether a weight can be changed by it."""
        rank = self.down.shape[0]
        shape = (self.up.shape[0], *self.down.shape[1:])
        plain = self.up.numel() == self.up.shape[0] * rank
        return plain and tuple(weight.shape) in (shape, shape[:2] + (1,) * (weight.ndim - 2))

    def change(self, like: Tensor) -> Tensor:
        """What is added to a weight, float32, on its device and in its shape."""
        down, up = (x.to(like.device, torch.float32).flatten(1) for x in (self.down, self.up))
        return (up @ down).view(like.shape)


Changes = Mapping[str, Mapping[str, LowRank]]
"""Component -> layer -> its change."""


def file_of(path: str) -> Path:
    """The file of a LoRA, given itself or its folder.

    Raises:
        FewstepError: There is none, several, or one that is no safetensors.
    """
    place = expand(path)
    if place.is_dir():
        found = sorted(place.glob("*.safetensors"))
        named = [file for file in found if file.name in (LORA_WEIGHTS, _PEFT_WEIGHTS)]
        chosen = named[-1:] or found  # of an export that has both, that of diffusers
        if len(chosen) != 1:
            raise FewstepError(
                f"{place}: {len(found)} files with .safetensors; give the LoRA's own file",
                code="missing-file",
            )
        place = chosen[0]
    if place.suffix != ".safetensors":
        raise FewstepError(
            f"{place}: a LoRA is a file with .safetensors, or a folder with one",
            code="unsupported" if place.exists() else "missing-file",
        )
    return regular_file(place)


def digest(loras: Iterable[LoraFile]) -> str | None:
    """Fingerprint of LoRAs and their scales; None without any."""
    found = [(file_of(each.path), each.scale) for each in loras]
    # Relative to itself: where a file is, and what it is called, says nothing.
    parts = [f"{digest_files([file], file)} {scale}" for file, scale in found]
    return digest_text(*parts) if parts else None


def read_lora(backbone: Any, path: str) -> dict[str, dict[str, LowRank]]:
    """The changes in a LoRA file, matched with the layers of a pipeline.

    diffusers' own converters of the pipeline class know the names of kohya, ComfyUI and others.

    Args:
        backbone: The model, which may be on the meta device; text encoders may be missing.
        path: File or folder.

    Returns:
        Component -> layer -> its change at scale 1.

    Raises:
        FewstepError: It cannot be read, is no plain LoRA, or some layers match nothing.
    """
    file, pipe, net_name = file_of(path), backbone.pipe, backbone.net_name
    convert = getattr(type(pipe), "lora_state_dict", _as_they_are)
    tensors, metadata = _tensors(file, net_name)
    how: dict[str, Any] = {"return_lora_metadata": True}
    if "return_alphas" in inspect.signature(convert).parameters:
        how["return_alphas"] = True
    if net_name == "unet":
        how["unet_config"] = backbone.config
    converted = third_party(file, convert, tensors, **how)[0]
    named: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in converted.items():
        if not key.endswith(".alpha"):  # multiplied in already
            component, _, name = key.partition(".")
            named[component][name] = tensor
    found, odd = {}, [f"{c}.{n}" for c in named for n in named[c] if c not in pipe.components]
    for component in (net_name, *backbone.encoder_names):
        if component in named:
            layers = _pairs(file, component, named[component], metadata, component == net_name)
            found[component] = layers
            network = getattr(pipe, component, None)
            if isinstance(network, nn.Module):
                odd += _unmatched(component, network, layers)
    total = sum(map(len, found.values()))
    if odd or not found.get(net_name):
        example = f", such as {odd[0]}" if odd else ""
        count = f"{len(odd)} of {max(total, len(odd))} layers match" if odd else "nothing matches"
        raise FewstepError(
            f"{file}: {count}{' nothing in' if odd else ''} the {net_name} of a "
            f"{type(pipe).__name__}{example}; is it a LoRA of another model?",
            code="mismatch",
        )
    return found


@torch.no_grad()
def fuse(backbone: Any, loras: Iterable[LoraFile]) -> None:
    """Adds LoRAs to a model's weights, in place; sums are float32, rounded once.

    What is on the meta device, or not loaded, is only compared.

    Raises:
        FewstepError: As `read_lora`, each naming its file.
    """
    sums: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for each in loras:
        for component, layers in read_lora(backbone, each.path).items():
            network = getattr(backbone.pipe, component, None)
            if not isinstance(network, nn.Module):
                continue
            for name, change in layers.items():
                weight = _weight(network, name)
                if weight is None or weight.is_meta:
                    continue
                total = sums.setdefault(id(weight), (weight, weight.float().clone()))[1]
                total.add_(change.change(weight), alpha=each.scale)
    for weight, total in sums.values():
        weight.copy_(total)


def as_adapter(backbone: Any, path: str, scale: float) -> dict[str, Tensor]:
    """A LoRA file as an adapter of the network, right at scale 1: names as of `lora.lora_layers`.

    Raises:
        FewstepError: As `read_lora`; or it changes text encoders or convolutions, too.
    """
    changes = read_lora(backbone, path)
    layers = changes.pop(backbone.net_name, {})
    if changes or any(change.down.ndim != 2 for change in layers.values()):
        raise FewstepError(
            f"{path}: changes more than linear layers of the network, and cannot be put into one "
            "LoRA; export without --merge, and load both",
            code="unsupported",
        )
    adapter: dict[str, Tensor] = {}
    for name, change in layers.items():
        adapter[f"{name}.lora_A.weight"] = change.down
        adapter[f"{name}.lora_B.weight"] = change.up * scale
    return adapter


def _as_they_are(tensors: dict[str, Tensor], **_: Any) -> tuple[dict[str, Tensor]]:
    """The converter of pipelines for which diffusers has none: only its own names are known."""
    return (tensors,)


def _tensors(file: Path, net_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, with every alpha multiplied into its layer, and PEFT's settings if any."""
    tensors: dict[str, Tensor] = third_party(file, load_file, file)
    if strange := sorted(name for name in tensors if not _PARTS.search(name)):
        raise FewstepError(
            f"{file}: {strange[0]} (and {len(strange) - 1} more) are no part of a plain LoRA; "
            "DoRA, LoHa, LoKr and whole weights are not read: merge it elsewhere",
            code="unsupported",
        )
    with third_party(file, safe_open, file, framework="pt") as opened:
        said = (opened.metadata() or {}).get("lora_adapter_metadata")
    metadata: dict[str, Any] = {}
    with suppress(ValueError):
        metadata = json.loads(said) if said else {}
    if any(name.startswith(_PEFT_PREFIX) for name in tensors):
        config = read_json(file.parent / _PEFT)
        if config is None:
            raise FewstepError(
                f"{file}: of PEFT, and {_PEFT}, which has its alpha, is not beside it; add it",
                code="missing-file",
            )
        metadata = {f"{net_name}.{key}": value for key, value in config.items()}
        tensors = {
            f"{net_name}.{name.removeprefix(_PEFT_PREFIX)}": each for name, each in tensors.items()
        }
    ranks = {_DOWN.sub("", name): len(x) for name, x in tensors.items() if _DOWN.search(name)}
    for name, tensor in list(tensors.items()):
        stem = _PARTS.sub("", name)
        alpha = tensors.get(f"{stem}.alpha")
        if alpha is None or stem not in ranks or name.endswith(".alpha") or _DOWN.search(name):
            continue
        tensors[name] = tensor * (float(alpha) / ranks[stem])
    for stem, rank in ranks.items():
        if tensors.pop(f"{stem}.alpha", None) is not None and not stem.startswith(f"{net_name}."):
            tensors[f"{stem}.alpha"] = torch.tensor(float(rank))  # no converter scales once more
    return tensors, metadata


def _pairs(
    file: Path, component: str, named: dict[str, Tensor], metadata: Mapping[str, Any], is_net: bool
) -> dict[str, LowRank]:
    """The layers of a component, from tensors under names of any version of diffusers."""
    if not any(".lora_A." in name for name in named):
        if is_net:
            named = convert_unet_state_dict_to_peft(named)
        else:
            named = third_party(file, convert_state_dict_to_diffusers, named)
            named = third_party(file, convert_state_dict_to_peft, named)
    settings = {
        key.removeprefix(f"{component}."): value
        for key, value in metadata.items()
        if key.startswith(f"{component}.")
    }
    layers = {}
    for name in sorted(name.removesuffix(".lora_A.weight") for name in named if ".lora_A." in name):
        down, up = named[f"{name}.lora_A.weight"], named.get(f"{name}.lora_B.weight")
        if up is None:
            raise FewstepError(f"{file}: {name} has only half of a LoRA", code="damaged")
        layers[name] = LowRank(down, up * _scale(settings, name, len(down)))
    return layers


def _scale(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """The scale of a layer by PEFT's settings: alpha / rank; 1 without any."""
    if settings.get("use_dora"):
        raise FewstepError(
            "a LoRA with use_dora is not read; merge it elsewhere", code="unsupported"
        )
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _weight(network: nn.Module, name: str) -> nn.Parameter | None:
    """The weight of a layer; CLIP's layers have lost a prefix on the way."""
    for each in (name, name.removeprefix("text_model.")):
        with suppress(AttributeError):
            weight = network.get_submodule(each).weight
            return weight if isinstance(weight, nn.Parameter) else None
    return None


def _unmatched(component: str, network: nn.Module, layers: Mapping[str, LowRank]) -> list[str]:
    """Names of layers that a network does not have, or has in another shape."""
    odd = []
    for name, change in layers.items():
        weight = _weight(network, name)
        if weight is None or not change.fits(weight):
            odd.append(f"{component}.{name}")
    return odd
