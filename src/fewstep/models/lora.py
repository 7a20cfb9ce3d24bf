"""Adapters of a family in files of their own, under names of the programs that load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.models.comfyui import ComfyUI
from fewstep.utils.errors import FewstepError

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""File of a folder that is a LoRA, as diffusers names it."""
_EXACT = 1024  # rows or columns up to which all singular values are computed
_SPARE, _ROUNDS = 16, 4  # of the randomised computation beyond it: see torch.svd_lowrank


class Adapted:
    """How a pipeline's LoRA is written and loaded.

    Attributes:
        name: Short name of the family.
        pipe: The pipeline.
        net_name: The component of the pipeline that is trained.
        comfyui_prefix: What ComfyUI has before diffusers' names of LoRA layers; None: nothing fits.
        comfyui: How ComfyUI loads the family; None: that is not known.
    """

    name: ClassVar[str]
    pipe: Any
    net_name: ClassVar[str]
    comfyui_prefix: ClassVar[str | None] = None
    comfyui: ClassVar[ComfyUI | None] = None

    def lora_call(self, address: str, file: str) -> str:
        """The line of Python that loads an exported LoRA from `address` into `pipe`."""
        return f"pipe.load_lora_weights({address!r}, weight_name={file!r})"

    def load_lora(self, folder: Path) -> None:
        """Loads what `save_lora` wrote into the pretrained network."""
        self.pipe.load_lora_weights(folder, weight_name=LORA_WEIGHTS)

    @classmethod
    def comfyui_lora(cls, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """LoRA weights under names that ComfyUI maps to its own layers, right at strength 1.

        Args:
            layers: Weights under diffusers' names, see `lora.lora_layers`.

        Raises:
            FewstepError: ComfyUI does not map them.
        """
        if cls.comfyui_prefix is None:
            what = f"{cls.name}: ComfyUI does not map the layers of this family"
            raise FewstepError(f"{what}; choose another format", code="unsupported")
        return {f"{cls.comfyui_prefix}{name}": weight for name, weight in layers.items()}

    def save_lora(self, folder: Path, layers: Mapping[str, Tensor]) -> None:
        """Writes an adapter as `pytorch_lora_weights.safetensors`, to be used at scale 1.

        Args:
            folder: Where to.
            layers: Weights under diffusers' names, see `lora.lora_layers`.

        Raises:
            FewstepError: diffusers cannot load LoRA weights into this pipeline.
        """
        save = getattr(self.pipe, "save_lora_weights", None)
        if save is None:
            raise FewstepError(f"{type(self.pipe).__name__} has no LoRA format; export it merged")
        save(folder, **{f"{self.net_name}_lora_layers": dict(layers)}, safe_serialization=True)


def lora_layers(net: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The weights of an adapter under diffusers' names, such as ``...to_q.lora_A.weight``."""
    from peft.utils import get_peft_model_state_dict

    layers: dict[str, Tensor] = get_peft_model_state_dict(net, adapter_name=adapter)
    return {name: weight.detach().contiguous() for name, weight in layers.items()}


def save_for_peft(folder: Path, layers: Mapping[str, Tensor]) -> None:
    """Writes an adapter as `PeftModel.from_pretrained` reads it: `adapter_config.json`, weights.

    Args:
        folder: Where to.
        layers: Weights under diffusers' names, see `lora_layers`, right at scale 1.
    """
    from peft import LoraConfig
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    ranks = {
        name.removesuffix(".lora_A.weight"): len(down)
        for name, down in layers.items()
        if name.endswith(".lora_A.weight")
    }
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ranks),
        rank_pattern=others,
        alpha_pattern=others,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    named = {f"base_model.model.{name}": weight for name, weight in layers.items()}
    save_file(named, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def joined_lora(*adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One adapter that changes every layer as several do together; ranks add up.

    So a student's adapter and the LoRAs that were fused into its teacher become one relative to
    the model that both were made for.

    Args:
        adapters: Weights as `lora_layers` gives them, right at scale 1.
    """
    keys = dict.fromkeys(key for adapter in adapters for key in adapter)
    return {
        key: torch.cat(
            [adapter[key].float() for adapter in adapters if key in adapter],
            dim=0 if key.endswith(".lora_A.weight") else 1,
        ).contiguous()
        for key in keys
    }


def nearest(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The matrix of a rank that is nearest to another one, as down [rank, in] and up [out, rank].

    It is the singular value decomposition cut off there (Eckart and Young 1936). Of large matrices,
    only the largest singular values are computed, which draws nothing from the global generators.

    Args:
        change: A layer's change; dimensions from the second on are one.
        rank: At most; a narrower layer has its own.
    """
    flat = change.flatten(1)
    if min(flat.shape) <= _EXACT:
        u, s, vt = torch.linalg.svd(flat, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[flat.device] if flat.is_cuda else []):
            torch.manual_seed(0)  # of the directions that it begins with
            u, s, v = torch.svd_lowrank(flat, q=rank + _SPARE, niter=_ROUNDS)
            vt = v.T
    root = s[:rank].sqrt()
    return (root[:, None] * vt[:rank]).contiguous(), (u[:, :rank] * root).contiguous()


def extracted_lora(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], layers: Sequence[str], rank: int
) -> dict[str, Tensor]:
    """The adapter of a rank that is nearest to the difference of two networks, layer by layer.

    Args:
        weights: Of the one network, by name.
        base: Of the other.
        layers: Names of linear layers; others are left out.
        rank: At most; a narrower layer has its own.
    """
    found = {}
    for layer in layers:
        delta = weights[f"{layer}.weight"].float() - base[f"{layer}.weight"].float()
        found[f"{layer}.lora_A.weight"], found[f"{layer}.lora_B.weight"] = nearest(delta, rank)
    return found


def renamed_lora(
    layers: Mapping[str, Tensor],
    prefix: str,
    names: Mapping[str, str],
    stacks: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Tensor]:
    """LoRA weights under another program's names of the layers.

    Args:
        layers: Weights as `lora_layers` gives them.
        prefix: What stands before every new name.
        names: The end of a layer's name -> its new end.
        stacks: The new end of a layer -> the ends of those that it is made of, in the order of its
            rows. Their adapters become one of as many times their rank.

    Raises:
        FewstepError: A layer has no name there, or not all parts of a stack have adapters.
    """
    parts = {end: new for new, ends in (stacks or {}).items() for end in ends}
    pairs: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for key in layers:
        layer, side = key.rsplit(".lora_", 1)
        if side == "B.weight":
            continue
        end = next((end for end in (*names, *parts) if layer.endswith(f".{end}")), None)
        if end is None:
            raise FewstepError(
                f"student.lora.targets: {layer} has no name in this format; leave it out",
                code="unsupported",
            )
        new = prefix + layer.removesuffix(end) + (names.get(end) or parts[end])
        pair = layers[f"{layer}.lora_A.weight"], layers[f"{layer}.lora_B.weight"]
        pairs.setdefault(new, {})[end] = pair
    renamed: dict[str, Tensor] = {}
    for new, found in pairs.items():
        wanted = next((ends for end, ends in (stacks or {}).items() if new.endswith(end)), found)
        if missing := [end for end in wanted if end not in found]:
            raise FewstepError(
                f"student.lora.targets: {new} is one layer in this format, and {missing[0]} has no "
                "adapter; adapt all of its parts",
                code="unsupported",
            )
        downs, ups = zip(*(found[end] for end in wanted), strict=True)
        renamed[f"{new}.lora_A.weight"] = torch.cat(downs).contiguous()
        renamed[f"{new}.lora_B.weight"] = torch.block_diag(*ups).contiguous()
    return renamed
