"""What can be sampled and exported: `Model`, and the functions that make one of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep import models
from fewstep.core.schedules import Terminal
from fewstep.export.base import find_format
from fewstep.export.note import check_free, read_note
from fewstep.export.write import write_student
from fewstep.inference.runs import Place, RunFolder
from fewstep.inference.sample import Encode, Network, Sampler, sample_batch, to_pixels
from fewstep.inference.source import Offload, Source
from fewstep.models.base import Backbone
from fewstep.models.lora import LORA_WEIGHTS
from fewstep.models.saving import stored_dtype, working_dtype
from fewstep.utils.errors import FewstepError, unknown
from fewstep.utils.files import check_writable
from fewstep.utils.privacy import public
from fewstep.utils.resources import expand

STUDENT_STEPS = 4
"""Evaluations a picture that students are sampled with unless told otherwise."""

WEIGHTS = ("ema", "raw")
"""Weights of a run's student: their running mean, or as they were trained."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network to draw from.

    Attributes:
        backbone: What knows how to ask it.
        net: The network, or its velocity as a function.
        label: Where it came from, for manifests.
        size: Height and width in pixels that it was distilled at; None: it was not.
        shift: Static shift of the grid it was distilled on; None is its model's own.
        place: Where it was read from; None for one that is in training.
        encode: What encodes prompts; None: the backbone does.
        terminal: Where the grid it was distilled on ends; "model": as its model's own.
    """

    backbone: Backbone
    net: Network
    label: str
    size: tuple[int, int] | None = None
    shift: float | None = None
    place: Place | None = None
    encode: Encode | None = None
    terminal: Terminal = "model"

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        batch: int = 1,
    ) -> list[Image.Image]:
        """Draws one picture for each prompt.

        With float32 weights, the pictures of a student are those that the stock diffusers pipeline
        draws with the same generator, bit for bit; with guidance, or with `batch` above 1, up to
        rounding.

        Args:
            prompts: One or several.
            steps: Euler steps; None: 4 for a student, else as the stock pipeline does.
            guidance: Scale, 1 is off; None: off for a student, else as the stock pipeline does.
            seed: Picture i starts from the noise of seed + i.
            height: In pixels; None: what it was distilled at, else as the stock pipeline does.
            width: In pixels, likewise.
            batch: Pictures drawn at once.

        Returns:
            The pictures; of a video model, the first frames.

        Raises:
            FewstepError: A setting that means nothing, or a size that does not fit the model.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        distilled, stock = self.size is not None, self.backbone
        if steps is None:
            steps = STUDENT_STEPS if distilled else stock.default_steps
        if guidance is None:
            guidance = 1.0 if distilled else max(1.0, stock.default_guidance)
        sampler = Sampler.of(self, steps, guidance, height=height, width=width)
        seeds = range(seed, seed + len(texts))
        images = sample_batch(
            self.backbone,
            self.net,
            texts,
            seeds,
            sampler=sampler,
            batch=batch,
            encode=self.encode,
        )
        return [to_pixels(image) for image in images]

    def export(
        self,
        folder: str | Path,
        *,
        format: str | None = None,
        merge: bool = False,
        address: str | None = None,
        dtype: str | None = None,
        weights: str | None = None,
    ) -> Path:
        """Writes a student to a folder; the weights are read anew, so that this model stays as is.

        Arguments, result and errors are those of `export_model`.
        """
        if self.place is None:
            raise FewstepError(
                f"{self.label}: not on disk; save the run, open its folder and export that",
                code="unsupported",
            )
        return export_model(
            self.place,
            folder,
            format=format,
            merge=merge,
            address=address,
            dtype=dtype,
            weights=weights,
        )


def load(
    path_or_repo_id: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    offload: Offload | None = None,
    prompts: Sequence[str] = (),
    **options: Any,
) -> Model:
    """A pretrained pipeline, such as a teacher.

    Args:
        path_or_repo_id: A diffusers folder, `package://...`, or `owner/name` on the Hugging Face
            Hub, which is fetched if it is not there yet.
        dtype: Name of the torch dtype to hold weights in; `auto` is bfloat16 where the network's
            files are, else float32.
        device: Where to draw; `auto` takes an accelerator if there is one.
        offload: None: the text encoders are loaded when there are prompts that were not encoded
            yet, and go again; network and VAE stay on the device. "model": network and VAE take
            turns there, and wait in the computer's memory. "none": everything is loaded at once
            and stays on the device.
        prompts: What will be drawn, to be encoded before the network is loaded.
        options: Settings of the model family, such as `max_sequence_length`.

    Raises:
        FewstepError: Nothing is there, or its pipeline is not supported.
    """
    source = Source(path_or_repo_id, dtype, device, offload=offload, options=options)
    backbone, place = source.load(prompts), Place(path_or_repo_id, options=options)
    return Model(backbone, backbone.net, public(str(path_or_repo_id)), place=place)


def open_model(
    place: str | Path,
    *,
    which: str | int | None = None,
    base: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    offload: Offload | None = None,
    prompts: Sequence[str] = (),
    **options: Any,
) -> Model:
    """The network that a folder stands for.

    Args:
        place: A run folder, an exported folder (whole or LoRA), any diffusers folder, or a repo id.
        which: Of a run: the `best` or `last` checkpoint, or a step; None takes its export if there
            is one and no `memory.base`, else the best checkpoint.
        base: The model that a LoRA or a run belongs to, where it does not say so or it has moved.
        dtype: Name of the torch dtype to hold weights in; `auto` is that of the run, elsewhere
            bfloat16 where the network's files are, else float32. Pictures equal those of the model
            card's snippet in float32. A run with `memory.base` is drawn on that base.
        device: Where to draw; `auto` takes an accelerator if there is one.
        offload: None: the text encoders are loaded when there are prompts that were not encoded
            yet, and go again; network and VAE stay on the device. "model": network and VAE take
            turns there, and wait in the computer's memory. "none": everything is loaded at once
            and stays on the device.
        prompts: What will be drawn, to be encoded before the network is loaded.
        options: Settings of the model family; they win over what the folder itself says.

    Raises:
        FewstepError: Nothing that can be loaded is there.
    """
    source = Place(place, which, base, options)
    how: dict[str, Any] = {"device": device, "offload": offload, "prompts": prompts}
    if not source.has_student:
        return load(place, dtype=dtype, **how, **options)
    exported = source.folder / "export"
    if which is None and RunFolder.is_one(source.folder) and _can_be_loaded(exported):
        recipe = RunFolder.open(source.folder, base).recipe
        if recipe.memory.base is None and not recipe.model.loras:  # exports are for the plain model
            held = recipe.model.dtype if dtype == "auto" else dtype
            model = open_model(exported, base=base, dtype=held, **how, **options)
            note = read_note(exported)
            return replace(model, place=replace(source, which=note.step if note else "best"))
    student = source.load_student(dtype=dtype, base=True, **how)
    return Model(
        student.backbone,
        student.net,
        student.label,
        student.size,
        student.shift,
        source,
        terminal=student.terminal,
    )


def export_model(
    place: str | Path | Place,
    out: str | Path | None = None,
    *,
    which: str | int | None = None,
    format: str | None = None,
    merge: bool = False,
    address: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
) -> Path:
    """Writes the student of a run (or of an export, or a LoRA) as a folder with a model card.

    Args:
        place: The run.
        out: Where to; None is `export` in the run. An earlier export there is replaced.
        which: The checkpoint, `best` (the default), `last` or a step.
        format: Name of an export format; None is `lora` for a LoRA run and `diffusers` else.
        merge: Write a LoRA as a whole network; with a format of LoRAs, `model.loras` into it.
        address: What the card's snippet loads; None is the folder that the card lies in. Give the
            repo id under which the folder will be published.
        dtype: Name of the torch dtype that weights are written in, and loaded in by the card's
            snippet; None is float32 for an adapter and that of the source's for a whole network.
            Adapters are merged in float32 before.
        weights: Of a run: `ema` (the running mean, where the run kept one) or `raw` (as trained).

    Returns:
        The folder.

    Raises:
        FewstepError: No such checkpoint or format, the format does not serve this student, or
            `out` holds something else.
    """
    source = place if isinstance(place, Place) else Place(place, which)
    final = expand(out if out is not None else source.folder / "export").absolute()
    check_free(final)
    if not source.has_student:
        raise FewstepError(
            f"{source.address}: neither a run folder nor an export; nothing was distilled there",
            code="missing-file",
        )
    mode, family = source.mode_and_family()
    chosen = find_format(format or ("diffusers" if merge else None), mode)
    if merge and chosen.adapter and not _has_loras(source):
        raise FewstepError(f"merge: {chosen.name} writes no whole network", code="mismatch")
    chosen.check(mode, family)
    for what, given, known in (("dtype", dtype, models.DTYPES), ("weights", weights, WEIGHTS)):
        if given is not None and given not in known:
            raise unknown(what, given, known)
    source = replace(source, raw=source.raw if weights is None else weights == "raw")
    check_writable(final.parent)
    # A whole network is loaded as it is stored, and in float32 where rounding would be felt.
    held = "float32" if dtype not in (None, "bfloat16") or source.is_lora else "auto"
    student = source.load_to_write(adapter=chosen.adapter, dtype=held)
    stored = dtype or stored_dtype(student.backbone.source / student.backbone.net_name)
    loaded, adapter = dtype or working_dtype(stored), dtype or "float32"
    student = replace(student, dtype=loaded, stored=stored, adapter_dtype=adapter, with_loras=merge)
    write_student(student, final, chosen, address=address)
    return final


def _has_loras(source: Place) -> bool:
    """Whether it is a run whose model has LoRAs in its weights."""
    run = RunFolder.is_one(source.folder)
    return run and bool(RunFolder.open(source.folder, source.base).recipe.model.loras)


def _can_be_loaded(exported: Path) -> bool:
    """Whether a folder is an export that diffusers can read."""
    note, files = read_note(exported), (LORA_WEIGHTS, "model_index.json")
    written = (note and note.files) or {}
    return note is not None and any(
        name in written or (exported / name).is_file() for name in files
    )
