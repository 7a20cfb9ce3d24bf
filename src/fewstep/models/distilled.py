"""Pipelines that cannot be teachers: already distilled ones, and those that draw otherwise.

Everything is told from small files (configurations, our own note, the card's header) and from
names, before any weight is read. To know one more, add a row to `REFUSED` or `OUTSIDE`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.utils import yaml

_SD = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_NOT_TRUE = (False, None)


@dataclass(frozen=True)
class Sign:
    """Settings that give a distilled model away.

    Attributes:
        part: Whose configuration: ``model_index``, ``scheduler``, ``transformer``, ``unet``.
        settings: Key -> values that count; all keys must agree. No values: any but none and false.
        told: What they mean, for the message.
        pipelines: Pipeline classes in which they mean that; empty: in all.
    """

    part: str
    settings: Mapping[str, tuple[Any, ...]]
    told: str
    pipelines: tuple[str, ...] = ()

    def seen(self, pipeline: str, parts: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the configurations of a pipeline of that class carry the sign."""
        if self.part not in parts or (self.pipelines and pipeline not in self.pipelines):
            return False
        return all(
            parts[self.part].get(key) in values
            if values
            else parts[self.part].get(key) not in _NOT_TRUE
            for key, values in self.settings.items()
        )


@dataclass(frozen=True)
class Refused:
    """A published few-step model, or a kind of them.

    Attributes:
        model: Its name.
        repo: Its id on the Hub; empty for a kind.
        pipeline: Its diffusers class.
        reason: Why it is no teacher.
        instead: What to distil instead.
        signs: How it is recognised, besides its name.
    """

    model: str
    repo: str
    pipeline: str
    instead: str
    reason: str = "already distilled to a few steps"
    signs: tuple[Sign, ...] = field(default=(), repr=False)


def _scheduler(*names: str) -> Sign:
    told = f"its scheduler is {' or '.join(names)}"
    return Sign("scheduler", {"_class_name": names}, told)


def _pipeline(name: str) -> Sign:
    return Sign("model_index", {"_class_name": (name,)}, f"it is a {name}")


_TRAILING = Sign(
    "scheduler",
    {
        "_class_name": ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
        "timestep_spacing": ("trailing",),
        "rescale_betas_zero_snr": _NOT_TRUE,  # such teachers need trailing steps: no sign there
    },
    "its scheduler spaces steps trailing, as one-step models do",
    _SD,
)
_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_SANA = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"

REFUSED = (
    Refused(
        "FLUX.1-schnell",
        "black-forest-labs/FLUX.1-schnell",
        "FluxPipeline",
        "black-forest-labs/FLUX.1-dev",
        signs=(
            Sign(
                "transformer",
                {"guidance_embeds": _NOT_TRUE},
                "guidance_embeds is false",
                ("FluxPipeline",),
            ),
        ),
    ),
    Refused(
        "FLUX.2-klein-4B",
        "black-forest-labs/FLUX.2-klein-4B",
        "Flux2KleinPipeline",
        "black-forest-labs/FLUX.2-klein-base-4B",
        signs=(Sign("model_index", {"is_distilled": (True,)}, "is_distilled is true"),),
    ),
    Refused(
        "FLUX.2-klein-9B",
        "black-forest-labs/FLUX.2-klein-9B",
        "Flux2KleinPipeline",
        "black-forest-labs/FLUX.2-klein-base-9B",
    ),
    Refused("SD-Turbo", "stabilityai/sd-turbo", _SD[0], _SD15, signs=(_TRAILING,)),
    Refused("SDXL-Turbo", "stabilityai/sdxl-turbo", _SD[1], _SDXL),
    Refused("SDXL-Lightning", "ByteDance/SDXL-Lightning", _SD[1], _SDXL),
    Refused(
        "SD3.5-Large-Turbo",
        "stabilityai/stable-diffusion-3.5-large-turbo",
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3.5-large",
    ),
    Refused("Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", "Tongyi-MAI/Z-Image"),
    Refused(
        "Sana-Sprint",
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        "SanaSprintPipeline",
        _SANA,
        signs=(
            _pipeline("SanaSprintPipeline"),
            _pipeline("SanaSprintImg2ImgPipeline"),
            Sign(
                "transformer",
                {"_class_name": ("SanaTransformer2DModel",), "guidance_embeds": ()},
                "guidance_embeds is true",
            ),
            _scheduler("SCMScheduler"),
        ),
    ),
    Refused(
        "a latent consistency model",
        "",
        "LatentConsistencyModelPipeline",
        _SDXL,
        signs=(
            _pipeline("LatentConsistencyModelPipeline"),
            Sign("unet", {"time_cond_proj_dim": ()}, "its unet has time_cond_proj_dim"),
            _scheduler("LCMScheduler", "FlowMatchLCMScheduler"),
        ),
    ),
    Refused("a consistency-distilled model", "", "", _SDXL, signs=(_scheduler("TCDScheduler"),)),
)
"""What is already distilled. The first row that fits gives the message."""

OUTSIDE = (
    (r"ShapE|Hunyuan3D|Trellis|TripoSR|LGM|MVDream|Zero123", "makes 3-D shapes, not pictures"),
    (
        r"VQ|VAR|AR[A-Z]|Autoregressive|Amused|Muse|MaskGIT|LLaDA|GlmImage|LlamaGen|Infinity|Janus"
        r"|Emu3|DallE",
        "draws discrete tokens (autoregressive or masked), not along a flow",
    ),
    (r"ConsistencyModel|StableCascade|Wuerstchen", "has no flow that four steps could follow"),
    (r".*(Audio|Music|Speech|Sound)", "makes sound, not pictures"),
    (r".*(Img2Img|Inpaint|Edit|Kontext|Fill|ControlNet|Upscale)", "works on a given picture"),
)
"""Start of a pipeline's class name -> why fewstep cannot distil it, whatever is forced."""

_WORDS = re.compile(
    r"(?<![a-z0-9])(?<!de-)(?<!de_)(?<!non-)"
    r"(turbo\w?|lightning|schnell|sprint|lcm|hyper-?sdx?l?|few-?steps?|\d{1,2}-?steps?|distilled)"
    r"(?![a-z])"
)
_TAGS = re.compile(r"few-?steps?|distill(ed|ation)|turbo|lightning|lcm|hyper-sd|consistency-model")
_CACHED = re.compile(r"models--.+?--(.+)")


def reason(address: str, folder: Path | None = None) -> str | None:
    """Why a pipeline is no teacher, and what to use instead; None: nothing speaks against it.

    Args:
        address: What the user wrote: a path or a repo id. A folder's own name counts too.
        folder: Where its small files are; None: only the name is looked at.
    """
    found = next(_clues(address, folder), None)
    if found is None:
        return None
    model, why, told, instead = found
    return f"{model} is {why} ({told}); distil {instead} instead"


def outside(pipeline: str) -> str | None:
    """Why pipelines of a class that fewstep does not know cannot be distilled, if known."""
    return next((why for start, why in OUTSIDE if re.match(start, pipeline)), None)


def _clues(address: str, folder: Path | None) -> Iterator[tuple[str, str, str, str]]:
    """Model, why it is no teacher, how that is known, and what to use; the surest clues first."""
    parts = _parts(folder) if folder else {}
    pipeline = str(parts.get("model_index", {}).get("_class_name", ""))
    card = yaml.front_matter(folder / "README.md") if folder else {}
    note = _json(folder / "fewstep.json") if folder else {}
    if note:
        told = f"fewstep.json says so: {note.get('steps', 'few')} steps"
        teacher = str(note.get("base") or card.get("base_model") or "its teacher")
        yield "it", "a student that fewstep made", told, teacher
    names = [name.casefold() for name in _names(address, folder, parts)]
    for row in REFUSED:
        if row.repo and row.repo.rpartition("/")[2].casefold() in names:
            yield row.model, row.reason, "told by its name", row.instead
    for row in REFUSED:
        for sign in (each for each in row.signs if each.seen(pipeline, parts)):
            yield _who(row, pipeline), row.reason, sign.told, row.instead
    words = [f"its name says {word[1]!r}" for name in names if (word := _WORDS.search(name))]
    tags = [str(tag) for tag in card.get("tags") or () if _TAGS.fullmatch(str(tag).casefold())]
    for told in (*words, *(f"its card has the tag {tag!r}" for tag in tags)):
        yield "it", REFUSED[0].reason, told, _base(pipeline)


def _who(row: Refused, pipeline: str) -> str:
    """The row's model; only "it" where the sign is shared by models of another class."""
    return row.model if row.pipeline in ("", pipeline) else "it"


def _base(pipeline: str) -> str:
    """A teacher for a student of that class."""
    found = (row.instead for row in REFUSED if pipeline and row.pipeline == pipeline)
    return next(found, "the model it was made from")


def _names(
    address: str, folder: Path | None, parts: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Last parts of all addresses that the pipeline is known by."""
    yield address.rstrip("/").rpartition("/")[2]
    if folder is not None:
        yield folder.resolve().name
        yield from (found[1] for part in folder.parts if (found := _CACHED.fullmatch(part)))
    for config in parts.values():
        yield str(config.get("_name_or_path", "")).rstrip("/").rpartition("/")[2]


def _parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations that may carry a sign, by part."""
    index = _json(folder / "model_index.json")
    parts = {"model_index": index}
    files = {"scheduler": "scheduler_config.json", "transformer": "config.json"}
    for part, file in (files | {"unet": "config.json"}).items():
        entry = index.get(part)
        if config := _json(folder / part / file):
            named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
            parts[part] = {"_class_name": named} | config
    return parts


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
