"""Single-file checkpoints, as ComfyUI and others load them: made a diffusers folder, once.

diffusers' own converters rename the tensors of networks, VAE and text encoders; tokenizers and
what a file lacks are linked from a diffusers folder. What comes out is loaded, and checked, as any
other.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_model, single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.models import shipped_configs
from fewstep.models.components import class_of
from fewstep.models.configs import has_component, read_config, read_index
from fewstep.models.libraries import third_party
from fewstep.models.partly import from_config
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_files, digest_text, regular_file, replacing, write_json
from fewstep.utils.tensors import cache_home

_VERSION = "1"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_UNKNOWN = "v1"  # what diffusers says of any file that it does not know
_OF_V1 = "model.diffusion_model.input_blocks.0.0.weight"
_OF_XL = "model.diffusion_model.label_emb.0.0.weight"
_VAE = ("first_stage_model.", "vae.")
_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
_NETWORK = "model.diffusion_model."
_PREFIX = re.compile(r"^(first_stage_model|vae|model\.diffusion_model)\.")
_BESIDE = ("model_ema.", "alphas_cumprod", "betas", "denoiser.", "logit_scale", "model_sampling.")
_CLIP = {
    "text_encoder": ("clip", "clip_sdxl", "clip_sd3", "open_clip"),
    "text_encoder_2": ("open_clip_sdxl", "open_clip_sd3"),
}
_T5 = "text_encoders.t5xxl.transformer.shared.weight"
_WEIGHTS = re.compile(r".*\.(safetensors|bin|msgpack|onnx\w*|h5|gguf)(\.index\.json)?")
_NEAR = {"Tongyi-MAI/Z-Image-Turbo": "Tongyi-MAI/Z-Image"}  # the same configurations


def configs_of(file: Path, parts: Path | None) -> Path:
    """The folder of the configurations of a checkpoint: that of its other parts, or shipped ones.

    Args:
        file: The checkpoint.
        parts: Folder of the parts that it lacks.

    Raises:
        FewstepError: It is no checkpoint that can be converted, or one of another pipeline.
    """
    repo = published(file)
    if parts is None:
        if repo is None:
            raise lacking(file, ["configurations"])
        return shipped_configs.folder_of(repo)
    pipeline = str(read_index(parts)["_class_name"])
    if repo is not None and shipped_configs.pipeline_class(repo) != pipeline:
        raise FewstepError(
            f"{file}: a checkpoint like {repo}, and {parts} is a {pipeline}; give the parts of that"
            " model as model.components",
            code="mismatch",
        )
    return parts


def lacking(file: Path, what: Iterable[str]) -> FewstepError:
    """The error about what is neither in a checkpoint nor beside it."""
    repo = published(file)
    example = f", such as {repo}" if repo else ""
    return FewstepError(
        f"{file}: holds no {', '.join(what)}; give model.components, a diffusers folder or repo id "
        f"of the same family{example}",
        code="missing-input",
    )


def is_lora(file: Path) -> bool:
    """Whether a file holds a LoRA."""
    with third_party(regular_file(file), safe_open, file, framework="pt") as opened:
        return _is_of_lora(opened.keys())


def _is_of_lora(names: Iterable[str]) -> bool:
    return any(".lora_" in name or name.startswith("lora_") for name in names)


@lru_cache(maxsize=8)
def header(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint, without values.

    Raises:
        FewstepError: It cannot be read, is a LoRA, or is quantised.
    """
    found: dict[str, Tensor] = {}
    with third_party(regular_file(file), safe_open, file, framework="pt") as opened:
        kinds = {}
        for name in opened.keys():  # noqa: SIM118 - no mapping
            part = opened.get_slice(name)
            kinds[name] = part.get_dtype()
            found[name] = torch.empty(part.get_shape(), device="meta")
    if _is_of_lora(found):
        raise FewstepError(
            f"{file}: a LoRA; give it as model.loras, and the model it belongs to as model.path",
            code="unsupported",
        )
    odd = {name: kind for name, kind in kinds.items() if kind not in _FLOATS}
    if quantised := [name for name in odd if not name.endswith((".position_ids", "num_updates"))]:
        raise FewstepError(
            f"{file}: quantised already ({quantised[0]} is {odd[quantised[0]]}); give the file in "
            "16 or 32 bits, fewstep quantises it itself (memory.base)",
            code="unsupported",
        )
    if not found:
        raise FewstepError(f"{file}: holds no tensors", code="damaged")
    return found


def published(file: Path) -> str | None:
    """Repo id of the published model that a checkpoint is like, as diffusers tells; None: unknown.

    Raises:
        FewstepError: As `header`.
    """
    tensors = dict(header(file))
    kind = third_party(file, single_file_utils.infer_diffusers_model_type, tensors)
    if kind == _UNKNOWN and _OF_V1 not in tensors:
        return None
    if kind == _UNKNOWN and _OF_XL in tensors:
        kind = "xl_base"  # known to diffusers by its text encoder, which is not here
    address = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    repo = str(address.get("pretrained_model_name_or_path", ""))
    repo = _NEAR.get(repo, repo)
    return repo if repo in shipped_configs.available() else None


def parts_outside(file: Path, parts: Path) -> list[str]:
    """Components of a pipeline that a checkpoint does not hold."""
    index = read_index(parts)
    names = [name for name in index if has_component(index, name)]
    return [name for name in names if not _is_inside(file, parts, name, index[name])]


def place_of(file: Path, parts: Path) -> Path:
    """Where a checkpoint is, or will be, a diffusers folder; not its name decides, its content."""
    configs = sorted(parts.glob("*/*config.json"))
    key = digest_text(
        _VERSION,
        digest_files([file], file),
        str(parts.resolve()),
        digest_files([parts / "model_index.json", *configs], parts),
    )
    return cache_home() / "models" / f"checkpoint-{key}"


def converted(file: Path, parts: Path) -> Path:
    """A checkpoint as a diffusers folder in the user's cache, which is written if need be.

    Args:
        file: The checkpoint.
        parts: Folder of the parts that it lacks, which are linked.

    Raises:
        FewstepError: diffusers has no converter for it, or what both lack.
    """
    folder = place_of(file, parts)
    if (folder / "model_index.json").is_file():
        return folder
    index = read_index(parts)
    outside = parts_outside(file, parts)
    networks = [n for n in index if has_component(index, n) and n not in outside]
    if missing := [name for name in outside if not _is_complete(parts / name)]:
        raise lacking(file, missing)
    with replacing(folder) as temporary:
        for name in (*networks, *outside):
            (temporary / name).mkdir(parents=True)
            for each in sorted((parts / name).iterdir()):
                if each.is_file() and (name in outside or not _WEIGHTS.fullmatch(each.name)):
                    _link(each, temporary / name / each.name)
        checkpoint: dict[str, Tensor] = third_party(file, load_file, file)
        for name in networks:
            cls = _class(parts, name, index[name])
            tensors = _component(file, checkpoint, cls, parts, name)
            stem = "diffusion_pytorch_model" if _is_of_diffusers(cls) else "model"
            contiguous = {key: x.contiguous().clone() for key, x in tensors.items()}
            save_file(contiguous, temporary / name / f"{stem}.safetensors", {"format": "pt"})
        write_json(temporary / "model_index.json", index)
    return folder


def _class(parts: Path, name: str, entry: Any) -> Any:
    pipeline = getattr(
        diffusers, str(read_index(parts)["_class_name"]), diffusers.DiffusionPipeline
    )
    return class_of(parts, name, entry, pipeline)


def _is_of_diffusers(cls: Any) -> bool:
    return issubclass(cls, diffusers.ModelMixin)


def _is_complete(component: Path) -> bool:
    """Whether a component has weights, or needs none."""
    if not component.is_dir():
        return False
    needs = (component / "config.json").is_file()
    return not needs or any(component.glob("*.safetensors"))


def _is_inside(file: Path, parts: Path, name: str, entry: Any) -> bool:
    """Whether a checkpoint holds a component."""
    cls = _class(parts, name, entry)
    if not issubclass(cls, nn.Module):
        return False
    tensors = header(file)
    if issubclass(cls, transformers.PreTrainedModel):
        return bool(_encoder_key(tensors, cls, parts / name))
    if name == "vae":
        return any(key.startswith(_VAE) for key in tensors)
    return True


def _encoder_key(tensors: Mapping[str, Tensor], cls: Any, folder: Path) -> str | None:
    """A tensor of a text encoder in a checkpoint; None: it is not there, in that width."""
    config = read_config(folder / "config.json")
    if cls.__name__.startswith("T5Encoder"):
        return _T5 if _T5 in tensors else None
    if not cls.__name__.startswith("CLIPText"):
        return None
    kinds = _CLIP.get(folder.name, ())
    keys = [str(single_file_utils.CHECKPOINT_KEY_NAMES[kind]) for kind in kinds]
    width = config.get("hidden_size", 512)
    return next((key for key in keys if key in tensors and tensors[key].shape[-1] == width), None)


def _component(
    file: Path, checkpoint: dict[str, Tensor], cls: Any, parts: Path, name: str
) -> dict[str, Tensor]:
    """The tensors of a component under diffusers' or transformers' names."""
    if issubclass(cls, transformers.PreTrainedModel):
        key = str(_encoder_key(checkpoint, cls, parts / name))
        of_t5 = key == _T5
        make = (
            single_file_utils.create_diffusers_t5_model_from_checkpoint
            if of_t5
            else single_file_utils.create_diffusers_clip_model_from_ldm
        )
        how = {"config": str(parts), "subfolder": name, "torch_dtype": checkpoint[key].dtype}
        model = third_party(file, make, cls, checkpoint, local_files_only=True, **how)
        tensors = dict(model.state_dict())
        if lost := [
            each for each, x in tensors.items() if x.is_meta and "position_ids" not in each
        ]:
            raise FewstepError(f"{file}: {name}: {lost[0]} is missing", code="damaged")
        shared = dict(model.named_parameters())  # of tied weights one
        return {each: x for each, x in tensors.items() if each in shared}
    own = _own(checkpoint, is_vae=name == "vae")
    kind = single_file_model._get_single_file_loadable_mapping_class(cls)
    network = from_config(cls, parts / name)
    plain = {_PREFIX.sub("", key): x for key, x in own.items()}
    if network.state_dict().keys() == plain.keys():
        return plain
    if kind is None:
        raise FewstepError(
            f"{file}: diffusers has no converter for a {cls.__name__}; give the model's diffusers "
            "folder",
            code="unsupported",
        )
    convert = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    numbers = sum(x.numel() for x in own.values())
    config: Any = network.config
    tensors = third_party(file, convert, config=dict(config), checkpoint=dict(own))
    if lost := numbers - sum(x.numel() for x in tensors.values()):
        raise FewstepError(
            f"{file}: {abs(lost):,} numbers are no part of a {cls.__name__} as {parts / name} "
            "describes it; give the parts of the same model as model.components",
            code="mismatch",
        )
    return tensors


def _own(checkpoint: Mapping[str, Tensor], *, is_vae: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are the VAE's, or the network's."""
    if is_vae:
        return {key: x for key, x in checkpoint.items() if key.startswith(_VAE)}
    others = (*_VAE, *_ENCODERS, *_BESIDE)
    own = {key: x for key, x in checkpoint.items() if not key.startswith(others)}
    named = {key: x for key, x in own.items() if key.startswith(_NETWORK)}
    return named or own


def _link(source: Path, target: Path) -> None:
    """Makes a file appear at another place: large ones need not be there twice."""
    try:
        target.symlink_to(source.resolve())
    except OSError:  # file systems without links
        shutil.copyfile(source, target)
