"""Students at rest: read from a run folder, from an exported folder or from a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep import models
from fewstep.config import ConfigError, Recipe, StudentRecipe
from fewstep.export.base import Student
from fewstep.export.note import NOTE, Note, read_note
from fewstep.inference.sample import default_size
from fewstep.inference.source import Offload, Source
from fewstep.models.base import Backbone
from fewstep.models.lora import LORA_WEIGHTS
from fewstep.train.changes import refuse_another_student
from fewstep.train.checkpoint import store
from fewstep.train.checkpoint.schema import BrokenCheckpointError
from fewstep.train.diagnosis import is_finite
from fewstep.train.roles import STUDENT, become_student
from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError, unknown
from fewstep.utils.files import read_text
from fewstep.utils.pretrained import Address
from fewstep.utils.privacy import public
from fewstep.utils.resources import expand, resolve


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run folder and the recipe in it."""

    folder: Path
    recipe: Recipe

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a folder is a run's."""
        return (folder / "config.yaml").is_file()

    @staticmethod
    def open(folder: str | Path, model: str | None = None) -> RunFolder:
        """The run in a folder.

        Args:
            folder: The folder.
            model: Where its model is now; None: where the recipe says.

        Raises:
            FewstepError: It is not a run's folder, or that is another model.
        """
        path = expand(folder)
        if not RunFolder.is_one(path):
            raise FewstepError(
                f"{folder}: not a run folder (no config.yaml in it)", code="missing-file"
            )
        file = path / "config.yaml"
        try:
            content = yaml.load(read_text(file))
            if not isinstance(content, dict):
                raise yaml.YAMLError("not a recipe")
            run = RunFolder(path, Recipe.from_saved(content))
        except (yaml.YAMLError, ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise FewstepError(
                f"{file}: damaged ({reason}); resuming the run writes it anew", code="damaged"
            ) from error
        return run if model is None else run._moved(model)

    def _moved(self, model: str) -> RunFolder:
        """The run with its model at another place."""
        identity = store.read_state(store.find(self.folder, "last")).get("identity") or {}
        moved = self.recipe.model.model_copy(update={"path": model})
        _require_same_model(moved.address, identity.get("model"), self.folder)
        return replace(self, recipe=self.recipe.model_copy(update={"model": moved}))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the student is distilled at."""
        return self.recipe.resolution.height, self.recipe.resolution.width

    def source(
        self,
        *,
        dtype: str = "auto",
        device: str | None = None,
        offload: Offload | None = None,
        base: bool = True,
        **options: Any,
    ) -> Source:
        """The pretrained model of the run, as it is held to draw from it.

        Args:
            dtype: Name of the torch dtype of the weights; `auto` is the run's.
            device: Where to; None is the recipe's.
            offload: See `Source`.
            base: Whether to quantize the network as the run did.
            options: Settings of the family; they win over the recipe's.
        """
        recipe = self.recipe
        return Source(
            recipe.model.address,
            dtype=recipe.model.dtype if dtype == "auto" else dtype,
            device=device or recipe.train.device,
            base=recipe.memory.base if base else None,
            offload=offload,
            cache=recipe.data.cache,
            options={**recipe.model.options, **options},
        )

    def load_backbone(self, **how: Any) -> Backbone:
        """The same, loaded; arguments are those of `source`."""
        return self.source(**how).load()

    def checkpoint(self, which: str | int) -> Path:
        """Folder of a checkpoint: `best`, `last`, or a step.

        Raises:
            FewstepError: There is none, or no such word.
        """
        with _naming_the_run(self.folder):
            return store.find(self.folder, _which(which))

    def student_weights(self, which: str | int, *, raw: bool = False) -> dict[str, Tensor]:
        """The student's weights in a checkpoint, by name, read and checked.

        Raises:
            FewstepError: There is no such checkpoint, its files are damaged, or some weights are
                not finite.
        """
        path = self.checkpoint(which)
        with _naming_the_run(self.folder):
            weights = store.student_weights(path, raw=raw)
        if not is_finite(weights.values()):
            raise FewstepError(
                f"{path}: the student's weights are not finite; take another by --which STEP",
                code="non-finite",
            )
        return weights

    def load_student(
        self, backbone: Backbone, which: str | int = "best", *, raw: bool = False
    ) -> Student:
        """The student of a checkpoint, in the backbone's own network.

        It is the running mean of the weights, where the run kept one. Of an adapter, the scale
        alpha / rank is multiplied into the weights, so that it is right at scale 1 wherever it is
        loaded.

        Args:
            backbone: The run's model, freshly loaded.
            which: `best`, `last`, or a step.
            raw: Take the weights as trained, without averaging.

        Raises:
            FewstepError: The run has no such checkpoint, its files are damaged, or config.yaml does
                not describe it.
        """
        path = self.checkpoint(which)
        saved, state = store.read_state(path), self.student_weights(which, raw=raw)
        recipe = self.recipe.student
        refuse_another_student(self.recipe, saved)
        dtype = str(backbone.net.dtype).removeprefix("torch.")
        if recipe.mode == "lora":
            state, recipe = _at_scale_one(state, recipe)
        net = become_student(backbone, recipe, state)
        if backbone.device.type == "meta":  # nothing can be copied into a network without values
            adapter = {key.replace(".weight", f".{STUDENT}.weight"): state[key] for key in state}
            net.load_state_dict(adapter, strict=False, assign=True)
        return Student(
            backbone=backbone,
            net=net,
            adapter=STUDENT if recipe.mode == "lora" else None,
            step=int(saved["step"]),
            label=f"{self.folder.name}/{path.name}",
            folder=self.folder,
            teacher=self.recipe.model.path,
            fingerprint=(saved.get("identity") or {}).get("model"),
            size=self.size,
            shift=self.recipe.grid.shift,
            terminal=self.recipe.grid.terminal,
            dtype=dtype,
            options=self.recipe.model.options,
            recipe=self.recipe,
        )


@dataclass(frozen=True)
class Place:
    """Where a model is read from, and what its loader is told.

    Attributes:
        address: A run folder, an exported folder, a LoRA, a diffusers folder or a repo id.
        which: Of a run: `best`, `last`, or a step; None is `best`.
        base: Of a LoRA or a run: the model that it belongs to; None: what the folder itself says.
        options: Settings of the family; they win over what the folder says.
        raw: Of a run: the weights as trained, where their running mean was kept as well.
    """

    address: str | Path
    which: str | int | None = None
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False

    @property
    def folder(self) -> Path:
        """The address as a path."""
        return resolve(self.address)

    @property
    def note(self) -> Note | None:
        """What an exported folder says of itself; None where it is an ordinary one."""
        return read_note(self.folder)

    @property
    def is_lora(self) -> bool:
        """Whether it is a folder with LoRA weights."""
        return (self.folder / LORA_WEIGHTS).is_file()

    @property
    def has_student(self) -> bool:
        """Whether a student is there: something that was distilled, or a LoRA."""
        return RunFolder.is_one(self.folder) or self.is_lora or self.note is not None

    def mode_and_family(self) -> tuple[str, str]:
        """Mode ("full" or "lora") and model family of the student there; reads no weights."""
        if RunFolder.is_one(self.folder):
            recipe = RunFolder.open(self.folder, self.base).recipe
            return recipe.student.mode, models.family_of(recipe.model.address).name
        source = self._base() if self.is_lora else self.address
        return "lora" if self.is_lora else "full", models.family_of(source).name

    def source(self, *, dtype: str, device: str, offload: Offload | None = None) -> Source:
        """The pipeline there, as it is held to draw from it; of a LoRA, its base model."""
        address, note = self._base() if self.is_lora else self.address, self.note
        if note is not None:
            note.check(self.folder)
        options = {**(note.options if note else {}), **self.options}
        return Source(address, dtype, device, offload=offload, options=options)

    def checkpoint(self, which: str | int) -> Path:
        """Folder of a checkpoint: `best`, `last`, or a step.

        Raises:
            FewstepError: There is none, or no such word.
        """
        return store.find(self.folder, _which(which))

    def load_student(
        self,
        *,
        dtype: str,
        device: str,
        offload: Offload | None = None,
        base: bool = False,
        prompts: Sequence[str] = (),
    ) -> Student:
        """The student there.

        Args:
            dtype: Name of the torch dtype of the weights; `auto` is that of the run, or of an
                export what suits its files.
            device: Where to draw.
            offload: See `Source`.
            base: Whether to quantize the network of a run as the run did.
            prompts: What will be drawn, see `Source.load`.

        Raises:
            FewstepError: Nothing that can be loaded is there.
        """
        how: dict[str, Any] = {"dtype": dtype, "device": device, "offload": offload}
        if RunFolder.is_one(self.folder):
            run, which = RunFolder.open(self.folder, self.base), self.which or "best"
            run.checkpoint(which)  # first: what follows takes long
            backbone = run.source(base=base, **how, **self.options).load(prompts)
            return run.load_student(backbone, which, raw=self.raw)
        return self._student_of(self.source(**how).load(prompts))

    def load_to_write(self, *, adapter: bool, dtype: str) -> Student:
        """The student there with what writing it needs: neither text encoders nor VAE.

        Args:
            adapter: Of a run's LoRA only the adapter is needed: its network has no values.
            dtype: Name of the torch dtype of the network's weights, as for `models.load`.
        """
        how: dict[str, Any] = {"dtype": dtype, "teacher": False, "encoders": False, "vae": False}
        if not RunFolder.is_one(self.folder):
            source = self.source(dtype=dtype, device="cpu")
            return self._student_of(models.load(source.address, **how, **source.options))
        run, which = RunFolder.open(self.folder, self.base), self.which or "best"
        run.checkpoint(which)  # first: what follows takes long
        model, options = run.recipe.model, {**run.recipe.model.options, **self.options}
        if adapter:
            backbone = models.load_meta(model.address, teacher=False, **options)
        else:
            backbone = models.load(model.address, **how, **options)
        return run.load_student(backbone, which, raw=self.raw)

    def _student_of(self, backbone: Backbone) -> Student:
        """The student of an exported folder, from its pipeline, or from the base of a LoRA."""
        note, adapter = self.note, None
        if self.is_lora:
            try:
                backbone.load_lora(self.folder)
            except Exception as error:  # whatever diffusers makes of a user's file
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise FewstepError(
                    f"{self.folder / LORA_WEIGHTS}: cannot be loaded: {why}", code="damaged"
                ) from error
            adapter = next(iter(getattr(backbone.net, "peft_config", {"default": None})))
        height, width = note.size if note else default_size(backbone)
        teacher = str(self._base()) if self.is_lora else (note and note.base) or self.folder.name
        return Student(
            backbone=backbone,
            net=backbone.net,
            adapter=adapter,
            step=note.step if note else 0,
            label=public(str(self.address)),
            folder=self.folder,
            teacher=teacher,
            size=(height, width),
            shift=note.shift if note else None,
            terminal=note.terminal if note else "model",
            dtype=str(backbone.net.dtype).removeprefix("torch."),
            options={**(note.options if note else {}), **self.options},
        )

    def _base(self) -> Address:
        """The address of a LoRA's base model: as given, as its note says, or as its run knows.

        A note holds no path, only the name of a local folder, which is looked for beside the LoRA.
        """
        said = (self.note and self.note.base) or ""
        if self.base and self.note and self.note.base_fingerprint:
            _require_same_model(self.base, self.note.base_fingerprint, self.folder)
        if self.base or "/" in said:
            return str(self.base or said)
        run = self.folder.absolute().parent
        if RunFolder.is_one(run):
            return RunFolder.open(run).recipe.model.address
        if not said or not (run / said).is_dir():
            what = f"of the model {said}, which is not beside it" if said else f"without a {NOTE}"
            raise FewstepError(
                f"{self.address}: a LoRA {what}; say where its base model is: --model PATH, base=",
                code="missing-input",
            )
        return str(run / said)


@contextmanager
def _naming_the_run(run_folder: Path) -> Iterator[None]:
    """Context in which errors about a checkpoint that is wanted name its run and a way out."""
    try:
        yield
    except BrokenCheckpointError as error:
        raise BrokenCheckpointError(
            f"{run_folder}: {error}; choose another checkpoint, or resume the run", code=error.code
        ) from error


def _require_same_model(model: Address, fingerprint: str | None, of: Path) -> None:
    """Refuses a model whose files are not those that something was made with.

    The fingerprint is of names and contents; of large files, of both ends and the length.
    """
    if fingerprint is None or models.fingerprints(model)["model"] != fingerprint:
        raise FewstepError(
            f"{model}: not the model that {of} was made with (its files differ); give that one",
            code="mismatch",
        )


def _which(which: str | int) -> str | int:
    """`best`, `last`, or the number of a step, also as text."""
    if isinstance(which, int):
        return which
    if which.isdecimal():
        return int(which)
    if which not in ("best", "last"):
        raise unknown("checkpoint", which, ("best", "last"))
    return which


def _at_scale_one(
    state: Mapping[str, Tensor], recipe: StudentRecipe
) -> tuple[dict[str, Tensor], StudentRecipe]:
    lora = recipe.lora
    if lora is None or lora.alpha is None:
        return dict(state), recipe
    scale = lora.alpha / lora.rank
    scaled = {key: value * scale if ".lora_B." in key else value for key, value in state.items()}
    plain = lora.model_copy(update={"alpha": None})
    return scaled, recipe.model_copy(update={"lora": plain})
