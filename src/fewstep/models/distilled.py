"""Pipelines that cannot be teachers: already distilled ones, and those that are no flow.

They are recognised by small files (configurations, fewstep.json, the card's front matter) and by
names, before any weight is read. To recognise one more, add a row to `REFUSED` or `OUTSIDE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.utils import yaml
from fewstep.utils.files import read_json

_SD = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_NOT_TRUE = (False, None)


@dataclass(frozen=True)
class Sign:
    """Settings in a configuration by which a distilled model is recognised.

    Attributes:
        component: The configuration: ``model_index``, ``scheduler``, ``transformer`` or ``unet``.
        settings: Key -> values; all keys must have one of theirs. No values: any but None and
            False.
        meaning: The message's words for them.
        pipelines: Pipeline classes in which they mean that; empty: in all.
    """

    component: str
    settings: Mapping[str, tuple[Any, ...]]
    meaning: str
    pipelines: tuple[str, ...] = ()

    def matches(self, pipeline: str, configs: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the configurations of a pipeline of that class have the settings."""
        config = configs.get(self.component)
        if config is None or (self.pipelines and pipeline not in self.pipelines):
            return False
        return all(
            config.get(key) in values if values else config.get(key) not in _NOT_TRUE
            for key, values in self.settings.items()
        )


@dataclass(frozen=True)
class Refused:
    """A published few-step model, or a kind of them.

    Attributes:
        model: Its name.
        repo: Its id on the Hugging Face Hub; empty for a kind of models.
        pipeline: Its diffusers class.
        instead: The repo id of a model to distil instead.
        reason: Why it is no teacher.
        signs: How it is recognised, besides its name.
    """

    model: str
    repo: str
    pipeline: str
    instead: str
    reason: str = "already distilled to a few steps"
    signs: tuple[Sign, ...] = field(default=(), repr=False)


def _scheduler(*names: str) -> Sign:
    meaning = f"its scheduler is {' or '.join(names)}"
    return Sign("scheduler", {"_class_name": names}, meaning)


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
"""Models that are already distilled. The first row that matches gives the message."""

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
"""Start of a pipeline's class name (a pattern), and why fewstep cannot distil it at all."""

_NAMES = re.compile(
    r"(?<![a-z0-9])(?<!de-)(?<!de_)(?<!non-)"
    r"(turbo\w?|lightning|schnell|sprint|lcm|hyper-?sdx?l?|few-?steps?|\d{1,2}-?steps?|distilled)"
    r"(?![a-z])"
)
_TAGS = re.compile(r"few-?steps?|distill(ed|ation)|turbo|lightning|lcm|hyper-sd|consistency-model")
_CACHED = re.compile(r"models--.+?--(.+)")


@dataclass(frozen=True)
class Distilled:
    """Why a pipeline is no teacher; its text is one line for the user.

    Attributes:
        model: The model's name, or "it".
        reason: What makes it no teacher.
        evidence: How that was recognised.
        instead: The repo id of a teacher, or words for one.
    """

    model: str
    reason: str
    evidence: str
    instead: str

    def __str__(self) -> str:
        """The line for the user."""
        return f"{self.model} is {self.reason} ({self.evidence}); distil {self.instead} instead"


def recognise(address: str, folder: Path | None = None) -> Distilled | None:
    """Whether a pipeline is known to be distilled already; None: nothing says so.

    Args:
        address: What the user wrote: a path or a repo id. The last part is looked at as a name.
        folder: The folder of its configurations; None: only the name is looked at.
    """
    return next(_clues(address, folder), None)


def outside(pipeline: str) -> str | None:
    """Why pipelines of a class that fewstep does not know cannot be distilled, if known."""
    return next((why for start, why in OUTSIDE if re.match(start, pipeline)), None)


def _clues(address: str, folder: Path | None) -> Iterator[Distilled]:
    """Everything that says that a pipeline is distilled, the surest first."""
    configs = _configs(folder) if folder else {}
    pipeline = str(configs.get("model_index", {}).get("_class_name", ""))
    card = yaml.front_matter(folder / "README.md") if folder else {}
    note = (read_json(folder / "fewstep.json") or {}) if folder else {}
    if note:
        evidence = f"fewstep.json says so: {note.get('steps', 'few')} steps"
        teacher = str(note.get("base") or card.get("base_model") or "its teacher")
        yield Distilled("it", "a student that fewstep made", evidence, teacher)
    names = [name.casefold() for name in _names(address, folder, configs)]
    for row in REFUSED:
        if row.repo and row.repo.rpartition("/")[2].casefold() in names:
            yield Distilled(row.model, row.reason, "by its name", row.instead)
    for row in REFUSED:
        for sign in row.signs:
            if sign.matches(pipeline, configs):
                # A sign may be shared by models of another class.
                model = row.model if row.pipeline in ("", pipeline) else "it"
                yield Distilled(model, row.reason, sign.meaning, row.instead)
    words = [f"its name says {word[1]!r}" for name in names if (word := _NAMES.search(name))]
    tags = [str(tag) for tag in card.get("tags") or () if _TAGS.fullmatch(str(tag).casefold())]
    for evidence in (*words, *(f"its card has the tag {tag!r}" for tag in tags)):
        yield Distilled("it", REFUSED[0].reason, evidence, _teacher_of(pipeline))


def _teacher_of(pipeline: str) -> str:
    """A teacher for a student of that pipeline class."""
    teachers = (row.instead for row in REFUSED if pipeline and row.pipeline == pipeline)
    return next(teachers, "the model it was made from")


def _names(
    address: str, folder: Path | None, configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The last parts of all paths and repo ids of the pipeline."""
    yield address.rstrip("/").rpartition("/")[2]
    if folder is not None:
        yield folder.resolve().name
        yield from (repo[1] for part in folder.parts if (repo := _CACHED.fullmatch(part)))
    for config in configs.values():
        yield str(config.get("_name_or_path", "")).rstrip("/").rpartition("/")[2]


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations that a `Sign` may look at, by component."""
    index = read_json(folder / "model_index.json") or {}
    configs = {"model_index": index}
    for name in ("scheduler", "transformer", "unet"):
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        if config := read_json(folder / name / file):
            entry = index.get(name)
            class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
            configs[name] = {"_class_name": class_name} | config
    return configs
