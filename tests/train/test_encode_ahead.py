"""Encoding ahead of a run: in little memory, once for all processes, and at an even cost."""

from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from fewstep import models
from fewstep.data.embeddings import Embeddings, key_of
from fewstep.data.precompute import SHARD, STORE, encode_for_run
from fewstep.models.encoder_memory import ENCODE_BATCH, ENCODE_BYTES, encode_batch, prompt_bytes
from fewstep.planning.memory_tracker import MemoryTracker
from fewstep.train import distill
from tiny import discover

OPTIONS = {"max_sequence_length": 16}
TINIES = discover()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_a_shard_costs_the_same_however_many_there_are(model, tmp_path):
    """What is written with a shard, besides it; the index is written at both ends only."""
    prompts = [f"ring {number}" for number in range(24)]
    backbone, folder = models.load(model, **OPTIONS), tmp_path / "cache"
    store = Embeddings.create(folder, key_of(str(model), dtype="float32", options=OPTIONS))
    store.add_null(backbone.null(1))
    index, sizes = (folder / "index.json").read_bytes(), []
    for prompt in prompts:
        before = sum(path.stat().st_size for path in folder.glob("index*"))
        store.add([prompt], backbone.encode([prompt]), [False])
        sizes.append(sum(path.stat().st_size for path in folder.glob("index*")) - before)
        assert (folder / "index.json").read_bytes() == index
    assert len(set(sizes)) == 1
    (journal,) = folder.glob("index-*")
    journal.write_bytes(journal.read_bytes()[:-9])  # a kill
    assert [*Embeddings.open(folder).missing(prompts)] == prompts[-1:]
    again = Embeddings.open(folder)
    again.add(prompts[-1:], backbone.encode(prompts[-1:]), [False])
    assert not Embeddings.open(folder).missing(prompts)
    again.seal()
    assert not [*folder.glob("index-*")] and not Embeddings.open(folder).missing(prompts)


def test_processes_encode_each_prompt_once_into_files_that_all_map(make_recipe, model, tmp_path):
    """Two of them, here as threads: they meet in nothing but the folder."""
    prompts = [f"ring {number}" for number in range(3 * SHARD)]
    recipe, folder, encoded, ends = make_recipe(), tmp_path / "run", Counter(), {}

    def loaded(rank: int) -> models.Backbone:
        backbone = models.load(model, **OPTIONS)  # in one thread: transformers has global state
        hook = backbone.pipe.text_encoder.register_forward_pre_hook
        hook(lambda _, args, kwargs: encoded.update([rank] * len(kwargs.get("input_ids", *args))),
             with_kwargs=True)  # fmt: skip
        return backbone

    def work(backbone: models.Backbone, folder: Path, **processes: Any) -> None:
        ends[folder, processes["rank"]] = encode_for_run(
            recipe, backbone, prompts, folder=folder, processes=SimpleNamespace(**processes)
        )

    def both() -> None:
        barrier, threads = threading.Barrier(2, timeout=60), []
        for rank in range(2):
            kwargs = {"rank": rank, "size": 2, "wait": barrier.wait}
            threads.append(Thread(target=work, args=(loaded(rank), folder), kwargs=kwargs))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both()
    tried = 4  # the empty prompt, and two that try the encoders
    assert sum(encoded.values()) <= len(prompts) + 2 * tried
    assert len(encoded) == 2 and min(encoded.values()) >= SHARD
    alone = loaded(0)
    work(alone, tmp_path / "alone", rank=0, size=1, wait=lambda: None)
    assert alone.pipe.text_encoder is None
    assert files_of(folder) == files_of(tmp_path / "alone"), "whoever encoded it"
    one, other = (ends[folder, rank].read(prompts[:5]) for rank in range(2))
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name

    next(folder.glob("prompts-*")).unlink()  # a kill before it was written
    before = files_of(folder)
    encoded.clear()
    both()
    assert sum(encoded.values()) <= SHARD + 2 * tried, "what is there is kept"
    assert before.items() <= files_of(folder).items()
    del prompts[0]  # other batches, therefore other rounding
    both()
    assert len(Embeddings.open(folder)) == len(prompts)


def test_a_run_that_was_stopped_goes_on_with_what_it_encoded(make_recipe, tmp_path):
    few = ["data.encode_ahead=true", "checkpoint.every=1", "preview.count=1", "health.count=1"]
    distill(make_recipe(*few, "train.steps=2"), tmp_path / "run", console=quiet())
    folder = tmp_path / "run" / STORE
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    distill(make_recipe(*few, "train.steps=3"), tmp_path / "run", resume=True, console=quiet())
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("name", TINIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoders_take_no_more_than_is_said(name, dtype, tmp_path):
    tiny = TINIES[name]
    tiny.build(tmp_path / "model")
    backbone = models.load(tmp_path / "model", dtype=dtype, **tiny.options)
    prompts = [f"{'word ' * backbone.encoder_tokens}{number}" for number in range(3)]
    backbone.null(1)  # tries the encoders, once
    parts = [getattr(backbone.pipe, part, None) for part in backbone.encoder_names]
    with torch.no_grad(), MemoryTracker() as tracker:
        tracker.watch(p for part in parts if part for p in (*part.parameters(), *part.buffers()))
        weights = tracker.now
        tracker.reset_peak()
        backbone.encode(prompts)
    texts = 64 * len(prompts[0])  # tokens of what is cut off, which a tokenizer gives all the same
    assert (tracker.peak - weights) / len(prompts) < prompt_bytes(backbone) + texts


def test_batches_of_the_largest_encoder_fit_beside_it():
    """T5-XXL at 512 tokens: 64 prompts took 12 GB."""
    sd3 = models.load_meta(
        "stabilityai/stable-diffusion-3-medium-diffusers", max_sequence_length=512
    )
    encoder = sd3.pipe.text_encoder_3.bfloat16()
    batch = encode_batch(sd3)
    with torch.no_grad(), MemoryTracker() as tracker:
        tracker.watch([*encoder.parameters(), *encoder.buffers()])
        weights = tracker.now
        tracker.reset_peak()
        encoder(torch.zeros(batch, 512, dtype=torch.long, device="meta"))
    assert 2 < batch < ENCODE_BATCH
    assert 0.2 * ENCODE_BYTES < tracker.peak - weights < ENCODE_BYTES
