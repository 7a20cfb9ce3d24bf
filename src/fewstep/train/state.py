"""A run between two steps: what it is made of, and what has to be saved to go on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fewstep import __version__, models, objectives
from fewstep.config import ConfigError, OptimizerRecipe, Recipe, missing_files
from fewstep.data.embeddings import Embeddings
from fewstep.data.order import Order
from fewstep.data.precompute import STORE, encode_for_run, open_cache
from fewstep.data.prompts import CachingEncoder, Encoder, Prompts, read_prompts
from fewstep.data.stored import StoredEncoder
from fewstep.models.base import Backbone
from fewstep.objectives import Objective
from fewstep.train.changes import refuse_another_run
from fewstep.train.checkpoint.manager import CHECKPOINTS, PREVIEWS, CheckpointManager
from fewstep.train.checkpoint.schema import BrokenCheckpointError, Checkpoint
from fewstep.train.checkpoint.store import read
from fewstep.train.diagnosis import is_finite
from fewstep.train.distributed import SINGLE, ProcessGroup, SharedUpdater, shard_modules
from fewstep.train.loading import load_model, split_roles
from fewstep.train.memory.offload import offload_vae, without_network
from fewstep.train.monitor.divergence import Divergence
from fewstep.train.monitor.health import Health
from fewstep.train.monitor.logger import Logger, SilentLogger
from fewstep.train.monitor.preview_scores import preview_score
from fewstep.train.monitor.previews import Preview
from fewstep.train.optim import Ema, LRSchedule
from fewstep.train.roles import FAKE_TEACHER, STUDENT, Roles, load_parameters
from fewstep.train.starts import start_student
from fewstep.train.step import Algorithm, TrainState
from fewstep.utils.errors import FewstepError, all_at_once
from fewstep.utils.hardware import pick_device
from fewstep.utils.pace import Note, silent


@dataclass(frozen=True)
class ValidatedRecipe:
    """What a recipe asks for, found to be there before any weight is loaded."""

    objectives: list[Objective]
    prompts: Prompts
    preview_prompts: list[str]
    device: torch.device
    embeddings: Embeddings | None = None

    @property
    def encoded(self) -> Iterator[str]:
        """All prompts that a run encodes."""
        return itertools.chain(self.prompts.distinct, self.preview_prompts)


@dataclass(eq=False)
class Run:
    """Everything a run consists of.

    Attributes:
        recipe: What was asked for.
        folder: Where the run lives.
        backbone: The model.
        train_state: Networks and optimizers.
        algorithm: What Algorithm 1 leaves open, decided; at the first of several sizes.
        order: Which prompts come when.
        encoder: What encodes them.
        preview: What draws pictures of fixed prompts.
        health: What measures a few fixed samples.
        log: Where figures go.
        identity: Fingerprints of what the weights depend on besides the recipe.
        saving: What writes checkpoints.
        processes: The processes that make up the run.
        step: Finished iterations.
        evaluations: Network evaluations spent in them, in samples.
        seconds: Time spent in them.
        scores: Preview scores by step.
        divergence: What judges whether it is coming apart.
    """

    recipe: Recipe
    folder: Path
    backbone: Backbone
    train_state: TrainState
    algorithm: Algorithm
    order: Order
    encoder: Encoder
    preview: Preview
    health: Health
    log: Logger
    identity: dict[str, str | None]
    saving: CheckpointManager
    processes: ProcessGroup = SINGLE
    step: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    scores: dict[int, float] = field(default_factory=dict)
    divergence: Divergence = field(default_factory=Divergence)


# ----------------------------------------------------------------------------------------- setup


def check(recipe: Recipe, note: Note = silent) -> ValidatedRecipe:
    """Look for everything a recipe names, except the model's weights.

    Args:
        recipe: The recipe.
        note: Called with how far it is, where it takes long.

    Raises:
        FewstepError: Something is not there; one line says what.
    """
    data, missing = recipe.data, missing_files(recipe)
    with all_at_once(ConfigError) as part:
        for key, file in missing.items():
            with part():
                raise ConfigError(f"{key}: there is no file {file}", code="missing-file")
        with part("preview.score"):
            preview_score(recipe.preview.score)
        with part():
            built = objectives.build_all(recipe)
        with part():
            device = pick_device(recipe.train.device, "train.device")
        with part():
            models.check(recipe.model.address, force=recipe.model.force, **recipe.model.options)
        if not missing:
            with part("data.prompts"):
                prompts = read_prompts(
                    data.prompts, column=data.column, split=data.split, note=note
                )
            with part("preview.prompts"):
                written = _preview_prompts(recipe)
    previewed = (written or prompts.distinct)[: recipe.preview.count]
    embeddings = open_cache(recipe, prompts.distinct, previewed) if data.cache is not None else None
    return ValidatedRecipe(built, prompts, list(previewed), device, embeddings)


def build(
    recipe: Recipe,
    folder: Path,
    validated: ValidatedRecipe,
    console: Console,
    processes: ProcessGroup = SINGLE,
    *,
    fresh: bool = True,
) -> Run:
    """Load all of a run, at step 0; `fresh`: it is not restored next. Writes only embeddings."""
    log = (Logger if processes.first else SilentLogger)(folder, recipe, console=console)
    backbone, encoder, roles = _loaded(recipe, folder, validated, processes, note=log.note)
    # FLUX.1-schnell is of FLUX.1-dev's family, and takes no guidance.
    guidance = "embedded" if "guidance" in backbone.null(1).tensors else "cfg"
    objectives.refuse_unsupported(validated.objectives, guidance, backbone.name)
    shape, *_ = [backbone.latent_shape(*each) for each in recipe.resolution.sizes]  # or refuses
    shift = backbone.student_shift(recipe.grid, *recipe.resolution.sizes[0])
    watched = encoder.encode(validated.preview_prompts[: recipe.health.count])
    initial = partial(start_student, recipe=recipe, backbone=backbone, note=log.note)
    start = initial if fresh else None
    preview = Preview(
        recipe,
        backbone,
        folder / PREVIEWS,
        prompts=validated.preview_prompts,
        model=models.fingerprint(recipe.model.address),
        processes=processes,
        attempt=log.attempt,
    )
    return Run(
        recipe=recipe,
        folder=folder,
        backbone=backbone,
        train_state=_train_state(recipe, backbone, validated.objectives, processes, roles, start),
        algorithm=Algorithm.from_recipe(
            recipe, validated.objectives, latent_shape=shape, shift=shift
        ),
        order=Order(validated.prompts.texts, recipe.train.seed),
        encoder=encoder,
        preview=preview,
        health=Health(recipe.health, watched, latent_shape=shape, shift=shift),
        log=log,
        identity={
            "prompts": validated.prompts.digest,
            **models.fingerprints(recipe.model.address),
            "embeddings": _digest(validated),
        },
        saving=CheckpointManager(folder / CHECKPOINTS, recipe.checkpoint, processes, log.note),
        processes=processes,
    )


def _digest(validated: ValidatedRecipe) -> str | None:
    stored = validated.embeddings
    return None if stored is None else stored.digest(validated.encoded)


def _loaded(
    recipe: Recipe,
    folder: Path,
    validated: ValidatedRecipe,
    processes: ProcessGroup,
    *,
    note: Note,
) -> tuple[Backbone, Encoder, Roles | None]:
    """The model on its device, what encodes prompts, and the roles where networks are split."""
    device, stored = validated.device, validated.embeddings is not None
    backbone, weights = load_model(recipe, processes, device, encoders=not stored, note=note)
    encoded = _embeddings(recipe, backbone, validated, folder=folder, note=note, job=processes)
    # Encoded prompts ask the network for its device, and one that is split has none before.
    roles = split_roles(recipe, backbone, weights, processes, device) if weights else None
    encoder: Encoder = CachingEncoder(backbone, cache_bytes=recipe.data.cache_gb * 1e9)
    if encoded is not None:
        encoder = StoredEncoder(encoded, backbone)
    backbone.to(device)
    if recipe.memory.offload_vae:
        offload_vae(backbone)
    return backbone, encoder, roles


def _embeddings(
    recipe: Recipe,
    backbone: Backbone,
    validated: ValidatedRecipe,
    *,
    folder: Path,
    note: Note,
    job: ProcessGroup,
) -> Embeddings | None:
    """Encoded prompts, where they are there already or to be made first."""
    if validated.embeddings is not None or not recipe.data.encode_ahead:
        return validated.embeddings
    with without_network(backbone):  # both at once need not fit the device
        backbone.to(validated.device)
        return encode_for_run(
            recipe, backbone, validated.encoded, folder=folder / STORE, processes=job, note=note
        )


def _train_state(
    recipe: Recipe,
    backbone: Backbone,
    objectives: Sequence[Objective],
    processes: ProcessGroup,
    roles: Roles | None,
    start: Callable[[Roles], None] | None,
) -> TrainState:
    memory, seed = recipe.memory, recipe.train.seed
    if roles is None:
        roles = Roles.build(backbone, recipe.student, seed=seed, memory=memory)
    if start is not None:
        start(roles)
    of_objectives = roles.add_networks(objectives, seed)
    if processes.sharded:
        shard_modules(roles, processes)
    lr_schedule = LRSchedule(recipe.train.warmup, recipe.train.cooldown, recipe.train.steps)
    settings: dict[str, OptimizerRecipe] = {
        STUDENT: recipe.student.optimizer,
        FAKE_TEACHER: recipe.fake_teacher.optimizer,
        **of_objectives,
    }
    optimizers = {
        role: SharedUpdater(
            role,
            roles.parameters(role),
            settings[role],
            lr_schedule=lr_schedule,
            on_host=memory.offload_optimizer,
            seed=seed,
        )
        for role in roles.trained
    }
    for optimizer in optimizers.values():
        optimizer.processes = processes
    ema = None
    if recipe.ema:
        student = roles.parameters(STUDENT)
        ema = Ema(student, recipe.ema.max_decay, on_host=memory.offload_ema)
    return TrainState(roles, dict(optimizers), ema)


def _preview_prompts(recipe: Recipe) -> Sequence[str]:
    """Those that the recipe writes out, or those of the file it names; else none."""
    source = recipe.preview.prompts
    return [] if source is None else read_prompts(source).distinct


# ------------------------------------------------------------------------------ saving, going on


def groups(run: Run) -> dict[str, Mapping[str, Tensor]]:
    """All tensors of a run's state, one group per file."""
    train_state = run.train_state
    found: dict[str, Mapping[str, Tensor]] = {
        name: train_state.roles.state(name) for name in train_state.roles.trained
    }
    found["optimizers"] = {
        key: tensor
        for optimizer in train_state.optimizers.values()
        for key, tensor in optimizer.tensors().items()
    }
    if train_state.ema is not None:
        found["ema"] = train_state.ema.weights
    return found


def state(run: Run) -> dict[str, Any]:
    """All else of a run's state, as JSON holds it; what it refers to moves on with the run."""
    train_state, verdict = run.train_state, run.divergence.verdict
    return {
        "score": run.scores.get(run.step),
        "scores": run.scores,
        "prompt_cursor": run.step * run.recipe.data.batch_size,
        "evaluations": run.evaluations,
        "seconds": run.seconds,
        "updates": {
            **{name: each.updates for name, each in train_state.optimizers.items()},
            "ema": train_state.ema.updates if train_state.ema else 0,
        },
        "pending_metrics": run.log.pending,
        "divergence": run.divergence.state(),
        "unhealthy": verdict.reason or None,
        "past_saving": verdict.lost,
        "sound_until": verdict.sound_until,
        "identity": run.identity,
        "recipe": run.recipe.model_dump(mode="json"),
        "versions": {"fewstep": __version__, "torch": torch.__version__},
    }


def restore(run: Run, saved: Checkpoint, *, going_back: bool = False) -> None:
    """Put a freshly built run into a saved state, whoever saved it: one process or several.

    Args:
        run: The run, at step 0.
        saved: A validated checkpoint; each process reads what it holds of it.
        going_back: Whether rates, objectives and the like may be others than the saved run's.

    Raises:
        FewstepError: The recipe, the prompts or the model are not those of the saved run, or its
            numbers are not finite.
    """
    content, updates = saved.state, saved.state["updates"]
    _refuse_another(run, content, going_back=going_back)
    train_state = run.train_state
    saved = read(saved, lambda key: _like(run, key))
    bad = [name for name, group in saved.groups.items() if not is_finite(group.values())]
    if wrong := {name for names in run.processes.exchange(bad) for name in names}:
        raise FewstepError(
            f"{saved.path}: {', '.join(sorted(wrong))}: not finite; give --resume-from STEP for an "
            "earlier one, or another folder",
            code="non-finite",
        )
    wanted = {*train_state.optimizers, *(["ema"] if train_state.ema is not None else [])}
    groups = wanted | ({"optimizers"} if content["step"] else set())
    if lacking := (wanted - updates.keys()) | (groups - saved.groups.keys()):
        raise BrokenCheckpointError(f"{saved.path.name}: lacks {', '.join(sorted(lacking))}")
    for name, optimizer in train_state.optimizers.items():
        load_parameters(train_state.roles.state(name), saved.groups[name])
        optimizer.load(saved.groups.get("optimizers", {}), updates[name])
    if train_state.ema is not None:
        train_state.ema.load(saved.groups["ema"], updates["ema"])
    run.step = content["step"]
    run.evaluations = content["evaluations"]
    run.seconds = content["seconds"]
    run.scores = {int(step): score for step, score in content["scores"].items()}
    run.log.pending = content["pending_metrics"]
    if content.get("divergence") is not None:  # earlier versions had none
        run.divergence.load(content["divergence"])


def _like(run: Run, key: str) -> Tensor | None:
    """The parameter that a saved tensor belongs to, and is split like."""
    group, _, name = key.partition("/")
    role = STUDENT if group == "ema" else group
    if group == "optimizers":
        role, moment, name = name.split("/", 2)
        if moment == "step":
            return None
    return run.train_state.roles.state(role).get(name)


def _refuse_another(run: Run, content: Mapping[str, Any], *, going_back: bool) -> None:
    for what, digest in run.identity.items():
        if content["identity"].get(what) != digest:
            raise FewstepError(
                f"the {what} are not those the run was started with; resume with those",
                code="mismatch",
            )
    refuse_another_run(run.recipe, content["recipe"], going_back=going_back)
