"""Encoding ahead: prompts in, a folder of embeddings out, which can be stopped at any moment."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep import models
from fewstep.config import Recipe
from fewstep.core.types import Conditioning
from fewstep.data.embeddings import Embeddings, Key, key_of
from fewstep.data.prompts import Prompts, read_prompts
from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_text
from fewstep.utils.hardware import pick_device
from fewstep.utils.resources import resolve

SHARD = 128
"""Prompts of one file: what is lost when the process is killed."""
_OWN = ("dtype", "device", "batch", "shard")


@dataclass(frozen=True)
class Encoding:
    """How prompts are encoded.

    Attributes:
        model: Folder or hub id of the pipeline whose text encoders are asked.
        options: Of its family, such as ``max_sequence_length``.
        dtype: That its weights are held in.
        device: Where; ``auto`` takes an accelerator if there is one.
        batch: Prompts at a time. One gives, bit for bit, what training encodes on the way; as many
            as `prompts.AHEAD` what it encodes ahead; more are quicker.
        shard: Prompts of one file, rounded up to whole batches.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "auto"
    batch: int = 1
    shard: int = SHARD

    def default_folder(self, key: Key) -> Path:
        """Where embeddings go when nothing is said: a folder for each model and settings."""
        name = Path(str(resolve(self.model))).name
        return Path("embeddings") / f"{name}-{digest_text(repr(sorted(key.items())))[:8]}"


def encode_ahead(
    prompts: Sequence[str],
    encoding: Encoding,
    folder: Path | None = None,
    *,
    note: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Encodes what a folder of embeddings lacks, the empty prompt included.

    What is there is checked and kept, whatever wrote it and however that ended.

    Args:
        prompts: The prompts; doubles are encoded once.
        encoding: How.
        folder: Where to; None takes a folder of the model's and settings' own.
        note: Is told how far it has got.

    Returns:
        What was done: folder, prompts, encoded, kept, damaged, overlong, bytes, seconds.

    Raises:
        FewstepError: The folder holds something else, or embeddings of another model or settings.
    """
    began = time.perf_counter()
    key = key_of(encoding.model, dtype=encoding.dtype, options=encoding.options)
    folder = folder or encoding.default_folder(key)
    there = (folder / "index.json").exists()
    backbone = None if there else _load(encoding)  # what cannot be loaded leaves nothing behind
    found = Embeddings.open(folder) if there else Embeddings.create(folder, key)
    found.refuse_other(key)
    with _alone(folder):
        damaged = found.verify()
        if damaged:
            note(f"{len(damaged)} damaged file(s) are made again: {', '.join(damaged[:3])}")
        missing = found.missing(prompts)
        if missing or not found.has_null:
            _encode(found, backbone or _load(encoding), missing, encoding, note)
    distinct = set(prompts)
    return {
        "folder": str(folder),
        "prompts": len(distinct),
        "encoded": len(missing),
        "kept": len(distinct) - len(missing),
        "damaged": damaged,
        "overlong": found.overlong(distinct),
        "bytes": found.nbytes,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _load(encoding: Encoding) -> Backbone:
    """The text encoders alone; whether the model may be a teacher is training's to ask."""
    device = pick_device(encoding.device)
    model, settings = encoding.model, {"teacher": False, "network": False, **encoding.options}
    return models.load(model, dtype=encoding.dtype, **settings).to(device)


def _encode(
    found: Embeddings,
    backbone: Backbone,
    missing: Sequence[str],
    encoding: Encoding,
    note: Callable[[str], None],
) -> None:
    """Shard by shard; each one counts as soon as it is written."""
    if not found.has_null:
        found.add_null(backbone.null(1))
    size = -(-encoding.shard // encoding.batch) * encoding.batch
    began = time.perf_counter()
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        batches = (part[i : i + encoding.batch] for i in range(0, len(part), encoding.batch))
        embedded = [backbone.encode(batch).to("cpu") for batch in batches]
        found.add(part, Conditioning.cat(embedded), backbone.overlong(part))
        done = start + len(part)
        rate = done / (time.perf_counter() - began)
        note(f"{done} of {len(missing)} prompts, {rate:.1f} a second")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Context in which no other process writes to the folder; ends with the process, too."""
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
        yield


def gather(
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
        column: Which column or key holds the prompt.
        split: Which part of a folder or data set.

    Raises:
        FewstepError: A source cannot be read, or there is no prompt at all.
    """
    found = [read_prompts(source, column=column, split=split) for source in sources[:1]]
    found += [read_prompts(source) for source in sources[1:]]
    more = [tidy for text in written if (tidy := " ".join(text.split()))]
    texts = tuple(text for each in [*(one.texts for one in found), more] for text in each)
    if not texts:
        raise FewstepError(
            "encode: no prompts; give PROMPTS (a file) or --prompt TEXT", code="missing-input"
        )
    return Prompts(
        texts,
        duplicates=len(texts) - len(set(texts)),
        empty=sum(each.empty for each in found),
        undecodable=sum(each.undecodable for each in found),
    )


def encoding_of(model: str, settings: Mapping[str, Any]) -> Encoding:
    """How to encode, from what was written: dtype, device, batch, shard; all else is the family's.

    Raises:
        FewstepError: A batch or shard that is no number above 0.
    """
    own = {name: value for name, value in settings.items() if name in _OWN}
    for name in ("batch", "shard"):
        value = own.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise FewstepError(
                f"{name}: must be a whole number above 0, not {value!r}", code="out-of-range"
            )
    options = {name: value for name, value in settings.items() if name not in _OWN}
    return Encoding(model, options, **own)


# ------------------------------------------------------------------------------------- for a run


def stored(recipe: Recipe, prompts: Sequence[str], previewed: Sequence[str]) -> Embeddings:
    """The embeddings that a recipe names, found to be the model's own, sound and complete.

    Raises:
        FewstepError: They are not; one line says why and gives the command that mends it.
    """
    folder = resolve(recipe.data.cache or "")
    mend = f"run: {command(recipe, folder)}"
    if not folder.is_dir():
        raise FewstepError(f"data.cache: there is no folder {folder}; {mend}", code="missing-file")
    model = recipe.model
    found = Embeddings.open(folder)
    found.refuse_other(key_of(model.path, dtype=model.dtype, options=model.options))
    wanted = [*prompts, *previewed]
    if damaged := found.verify(wanted):
        raise FewstepError(f"{folder / damaged[0]}: missing or damaged; {mend}", code="damaged")
    missing = found.missing(wanted)
    if missing or not found.has_null:
        what = f"{len(missing)} of the prompts" if missing else "the empty prompt"
        raise FewstepError(f"data.cache: {folder} lacks {what}; {mend}", code="missing-input")
    return found


def command(recipe: Recipe, folder: Path) -> str:
    """The command line that encodes everything that a recipe's training asks for."""
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
    for name, value in {"dtype": model.dtype, **model.options}.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, "--out", str(folder)])
