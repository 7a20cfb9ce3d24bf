"""Writing the folder: a whole pipeline, or an adapter, under a temporary name and then renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewstep.core.schedules import few_step_sigmas
from fewstep.export.card import Card, write_card
from fewstep.inference.load import NOTE, Run, Student
from fewstep.models.base import Backbone
from fewstep.train.roles import STUDENT
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import replacing, write_json
from fewstep.utils.resources import SCHEME, resolve

STEPS = 4  # evaluations a picture that the card speaks of


def export_run(
    run_folder: str | Path,
    out: str | Path | None = None,
    *,
    which: str = "best",
    merge: bool = False,
    address: str | None = None,
    dtype: str = "float32",
) -> Path:
    """Exports a run's student.

    Of a full fine-tuning, a whole diffusers folder with the student in its network's place. Of a
    LoRA, `pytorch_lora_weights.safetensors`, right at scale 1, or, merged, a whole folder.

    Args:
        run_folder: The run.
        out: Where to; None is `export` in the run. An earlier export there is replaced.
        which: The checkpoint, `best` or `last`.
        merge: Write a LoRA as a whole folder.
        address: What the card's snippet loads; None is the folder's own path. Give the repo id
            under which the folder will be published.
        dtype: Name of the torch dtype that the weights are written in.

    Returns:
        The folder.

    Raises:
        FewstepError: No such checkpoint, or `out` holds something else.
    """
    run = Run.open(run_folder)
    final = (Path(out) if out is not None else run.folder / "export").expanduser().absolute()
    _check_free(final)
    backbone = run.load_backbone(dtype=dtype, device="cpu")
    student = run.load_student(backbone, which)
    adapter = student.recipe.mode == "lora" and not merge
    with replacing(final) as temporary:
        temporary.mkdir()
        _write_weights(temporary, run, backbone, student, adapter=adapter)
        write_json(temporary / NOTE, _note(run, backbone, student, adapter=adapter))
        card = Card(run, backbone, student, adapter, address or str(final), STEPS, dtype)
        write_card(temporary, card)
    return final


def _check_free(final: Path) -> None:
    """Only an export, or an empty folder, may be replaced."""
    if (
        final.exists()
        and not (final / NOTE).is_file()
        and (not final.is_dir() or any(final.iterdir()))
    ):
        raise FewstepError(
            f"{final}: exists and is not an export; choose another folder", code="exists"
        )


def _write_weights(
    folder: Path, run: Run, backbone: Backbone, student: Student, *, adapter: bool
) -> None:
    if adapter:
        backbone.save_lora(folder, student.net, STUDENT)
        return
    if student.recipe.mode == "lora":
        merge_adapter(student.net)
    backbone.save(folder, student.net, shift=run.recipe.grid.shift)


def merge_adapter(net: nn.Module) -> None:
    """Adds a network's active adapter to its weights, in place; no adapter layers are left."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        net.set_submodule(name, layer.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config


def _note(run: Run, backbone: Backbone, student: Student, *, adapter: bool) -> dict[str, Any]:
    note: dict[str, Any] = {
        "backbone": backbone.name,
        "options": dict(run.recipe.model.options),
        "size": list(run.size),
        "steps": STEPS,
        "shift": run.recipe.grid.shift,
        "base_sigmas": few_step_sigmas(STEPS),
        "guidance": 1.0,
        "step": student.step,
    }
    return note | ({"base": base_address(run)} if adapter else {})


def base_address(run: Run) -> str:
    """How an adapter finds its base model again: an absolute path, a `package://`, or a repo id."""
    text = run.recipe.model.path
    path = resolve(text)
    return str(path.absolute()) if path.exists() and not text.startswith(SCHEME) else text
