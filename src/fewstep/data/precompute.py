"""Precomputed embeddings: of ``fewstep encode``, which ``data.cache`` reads, or of a run itself."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fewstep import models
from fewstep.config import Recipe
from fewstep.config.model import ModelRecipe
from fewstep.core.types import Conditioning
from fewstep.data.embeddings import INDEX, Embeddings, Key, key_of
from fewstep.data.prompts import Prompts, as_prompts, normalized, read_prompts
from fewstep.data.texts import Texts
from fewstep.models.base import Backbone
from fewstep.models.encoder_memory import ENCODE_BATCH, encode_batch
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import check_writable, digest_text
from fewstep.utils.hardware import pick_device
from fewstep.utils.pace import Note, Pace, silent
from fewstep.utils.pretrained import Address
from fewstep.utils.resources import expand, resolve

SHARD = 128
"""Prompts per file, rounded up to whole batches."""
STORE = "embeddings"
"""Folder of what a run encodes ahead, below the run's own."""


@dataclass(frozen=True)
class Encoding:
    """How prompts are encoded.

    Attributes:
        model: The pipeline with the text encoders: folder, hub id, or a file with its parts.
        options: Options of the model family, such as ``max_sequence_length``.
        dtype: Name of the dtype of the weights.
        device: Such as ``cuda``; ``auto`` takes an accelerator if there is one.
        batch: Prompts per batch, and at most `encode_batch`. 1 gives bitwise the embeddings of
            training without ``data.encode_ahead``, `ENCODE_BATCH` those of training with it.
        shard: Prompts per file, rounded up to whole batches; a kill loses no more than these.
    """

    model: Address
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "auto"
    batch: int = 1
    shard: int = SHARD

    @classmethod
    def from_settings(cls, model: str, settings: Mapping[str, Any]) -> Encoding:
        """Encoding from one set of settings; those that are none of its own are options.

        Its own are dtype, device, batch, shard, and of a recipe's `model` section variant,
        components and loras.

        Raises:
            FewstepError: A batch or shard that is not a whole number above 0, or wrong loras.
        """
        options = dict(settings)
        place = {name: options.pop(name) for name in _OF_PLACE if name in options}
        address = ModelRecipe.read({"path": model, **place}).address
        own = {name: options.pop(name) for name in _OWN if name in options}
        for name, value in own.items():
            most = _OWN[name]
            if most is None and not isinstance(value, str):
                raise FewstepError(f"--set {name}: must be a name, not {value!r}", code="usage")
            if most is not None and (type(value) is not int or not 1 <= value <= most):
                raise FewstepError(
                    f"--set {name}: must be a whole number from 1 to {most:,}, not {value!r}",
                    code="out-of-range",
                )
        return cls(address, options, **own)

    def default_folder(self, key: Key) -> Path:
        """Folder for the embeddings of a model and its settings, where none is given."""
        name = resolve(str(self.model)).name
        return Path("embeddings") / f"{name}-{digest_text(repr(sorted(key.items())))[:8]}"

    def batch_of(self, backbone: Backbone) -> int:
        """Prompts per batch with a model's encoders."""
        return min(self.batch, encode_batch(backbone))

    def shard_of(self, backbone: Backbone) -> int:
        """Prompts per file: whole batches, so that a kill changes none."""
        batch = self.batch_of(backbone)
        return -(-self.shard // batch) * batch

    def load_encoders(self) -> Backbone:
        """The model without its network, on its device; it may be a distilled one."""
        device = pick_device(self.device)
        options = {"teacher": False, "network": False, **self.options}
        return models.load(self.model, dtype=self.dtype, **options).to(device)


_OF_PLACE = ("variant", "components", "loras")
_OWN = {"dtype": None, "device": None, "batch": 10_000, "shard": 100_000}
"""Settings that are no options of the model; the largest number, None for a name."""


def encode_ahead(
    prompts: Sequence[str],
    encoding: Encoding,
    folder: Path | None = None,
    *,
    note: Note = silent,
) -> dict[str, Any]:
    """Encodes the prompts that a folder of embeddings lacks, and the empty prompt.

    Embeddings that are there are checked and kept; damaged files are written again.

    Args:
        prompts: The prompts; duplicates are encoded once.
        encoding: How to encode them.
        folder: Where to write; None: ``embeddings/MODEL-KEY``.
        note: Called with messages about progress.

    Returns:
        folder, prompts, encoded, kept, damaged, overlong, bytes, seconds.

    Raises:
        FewstepError: The folder holds something else, or embeddings of another model or settings.
    """
    began = time.perf_counter()
    key = key_of(encoding.model, dtype=encoding.dtype, options=encoding.options)
    folder = expand(folder or encoding.default_folder(key))
    check_writable(folder)
    exists = (folder / INDEX).exists()
    backbone = None if exists else encoding.load_encoders()  # an error here leaves no folder
    if backbone is not None:
        backbone.null(1), backbone.encode(prompts[:1])  # nor do encoders that are not sound
    embeddings = Embeddings.open(folder) if exists else Embeddings.create(folder, key)
    embeddings.refuse_other(key)
    with _locked(folder):
        damaged = embeddings.verify()
        if damaged:
            note(f"{len(damaged)} damaged file(s) are made again: {', '.join(damaged[:3])}")
        missing = embeddings.missing(prompts)
        if missing or not embeddings.has_null:
            backbone = backbone or encoding.load_encoders()
            _encode(embeddings, backbone, missing, encoding=encoding, note=note)
        embeddings.seal()
    distinct = Texts(prompts).distinct
    return {
        "folder": str(folder),
        "prompts": len(distinct),
        "encoded": len(missing),
        "kept": len(distinct) - len(missing),
        "damaged": damaged,
        "overlong": embeddings.overlong(distinct),
        "bytes": embeddings.nbytes,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _encode(
    embeddings: Embeddings,
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    encoding: Encoding,
    note: Note,
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Encodes and writes, shard by shard, this process's share of what is not there yet."""
    if rank == 0 and not embeddings.has_null:
        embeddings.add_null(backbone.null(1))
    batch, size, pace = encoding.batch_of(backbone), encoding.shard_of(backbone), Pace(note)
    for start in range(rank * size, len(prompts), processes * size):
        shard = prompts[start : start + size]
        if not embeddings.holds(shard):
            batches = (shard[i : i + batch] for i in range(0, len(shard), batch))
            cond = Conditioning.cat([backbone.encode(each).to("cpu") for each in batches])
            _check_room(embeddings.folder, cond, len(prompts) - start)
            embeddings.add(shard, cond, backbone.overlong(shard))
        pace.say_done(start + len(shard), len(prompts), "prompts")


def _check_room(folder: Path, cond: Conditioning, count: int) -> None:
    """Refuses to begin what will not fit: so many prompts, each as large as those encoded."""
    wanted = sum(tensor.nbytes for tensor in cond.tensors.values()) / cond.batch * count
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise FewstepError(
            f"{folder}: no room for the embeddings of {count:,} prompts, {wanted / 1e9:,.0f} GB: "
            f"{free / 1e9:.0f} GB are free; take fewer prompts or another disk",
            code="no-access",
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Context in which no other process writes to the folder; a killed process frees the lock.

    Raises:
        FewstepError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FewstepError(
                f"{folder}: another process is writing to it; wait for it", code="no-access"
            ) from error
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed
            leftover.unlink()
        yield


def gather_prompts(
    sources: Sequence[str],
    written: Sequence[str] = (),
    *,
    column: str | None = None,
    split: str | None = None,
) -> Prompts:
    """All prompts of some sources, then those written out, as one list.

    Args:
        sources: What `prompts.read_prompts` reads; `column` and `split` are of the first one.
        written: More prompts.
        column: Column or key with the prompts.
        split: Part of a folder or data set.

    Raises:
        FewstepError: A source cannot be read, or there is no prompt at all.
    """
    if not sources and not written:
        raise FewstepError(
            "encode: no prompts; give PROMPTS (a file) or --prompt TEXT", code="missing-input"
        )
    parts = [read_prompts(source, column=column, split=split) for source in sources[:1]]
    parts += [read_prompts(source) for source in sources[1:]]
    if written:
        parts.append(as_prompts(map(normalized, written), "--prompt"))
    return Prompts(
        Texts(text for part in parts for text in part.texts),
        empty=sum(part.empty for part in parts),
        undecodable=sum(part.undecodable for part in parts),
    )


# ------------------------------------------------------------------------------------- for a run


class Processes(Protocol):
    """The processes of a job, as one of them sees them."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def wait(self) -> None:
        """Waits until every process has called this."""


def encode_for_run(
    recipe: Recipe,
    backbone: Backbone,
    prompts: Iterable[str],
    *,
    folder: Path,
    processes: Processes,
    note: Note = silent,
) -> Embeddings:
    """Encodes all prompts of a run into a folder of its own, and frees the text encoders.

    Each process encodes its share, and all map the same files. What is there is kept, where it is
    of the same prompts in the same order: batching changes rounding, and a run has to repeat.

    Args:
        recipe: The run's.
        backbone: Its model with the text encoders.
        prompts: The prompts; duplicates are encoded once.
        folder: Where to; all processes must see it.
        processes: The processes of the run.
        note: Called with how far it is, where it takes long.

    Raises:
        FewstepError: There is no room, or some process does not see what others wrote.
    """
    model, wanted = recipe.model, Texts(Texts(prompts).distinct)
    encoding = Encoding(model.address, model.options, model.dtype, batch=ENCODE_BATCH)
    backbone.null(1)  # encoders that are not sound leave no folder
    if processes.rank == 0:
        key = key_of(model.address, dtype=model.dtype, options=model.options)
        size = encoding.shard_of(backbone)
        shards = (wanted[i : i + size] for i in range(0, len(wanted), size))
        Embeddings.begin(folder, key, shards)
    processes.wait()
    _encode(
        Embeddings.open(folder, writer=processes.rank),
        backbone,
        wanted,
        encoding=encoding,
        note=note,
        rank=processes.rank,
        processes=processes.size,
    )
    processes.wait()
    embeddings = Embeddings.open(folder)
    if missing := embeddings.missing(wanted):
        raise FewstepError(
            f"{folder}: lacks {len(missing)} prompts that other processes encoded; is it on a disk "
            "that all machines share?",
            code="missing-file",
        )
    processes.wait()
    if processes.rank == 0:
        embeddings.seal()
    backbone.free_encoders()
    return embeddings


def open_cache(recipe: Recipe, prompts: Iterable[str], previewed: Iterable[str]) -> Embeddings:
    """Opens the embeddings that a recipe names, checked to be sound, complete and of its model.

    Args:
        recipe: A recipe with ``data.cache``.
        prompts: The training prompts.
        previewed: The preview's prompts.

    Raises:
        FewstepError: They are not; the message has the command that encodes what is missing.
    """
    folder = resolve(recipe.data.cache or "")
    remedy = f"run: {encode_command(recipe, folder)}"
    if not folder.is_dir():
        raise FewstepError(
            f"data.cache: there is no folder {folder}; {remedy}", code="missing-file"
        )
    model = recipe.model
    embeddings = Embeddings.open(folder)
    embeddings.refuse_other(key_of(model.address, dtype=model.dtype, options=model.options))
    wanted = Texts(itertools.chain(prompts, previewed))
    if damaged := embeddings.verify(wanted):
        raise FewstepError(f"{folder / damaged[0]}: missing or damaged; {remedy}", code="damaged")
    missing = embeddings.missing(wanted)
    if missing or not embeddings.has_null:
        missing_part = f"{len(missing)} of the prompts" if missing else "the empty prompt"
        raise FewstepError(
            f"data.cache: {folder} lacks {missing_part}; {remedy}", code="missing-input"
        )
    return embeddings


def encode_command(recipe: Recipe, folder: Path) -> str:
    """The command line that encodes all prompts of a recipe's training and previews."""
    data, preview, model = recipe.data, recipe.preview, recipe.model
    words = ["fewstep", "encode"]
    for source in (data.prompts, preview.prompts):
        if isinstance(source, str):
            words.append(source)
        else:
            words += [word for text in source or () for word in ("--prompt", text)]
    if data.column:
        words += ["--column", data.column]
    if data.split:
        words += ["--split", data.split]
    words += ["--model", model.path]
    said = model.model_dump(mode="json", include=set(_OF_PLACE), exclude_defaults=True)
    for name, value in {"dtype": model.dtype, **said, **model.options}.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, "--out", str(folder)])
