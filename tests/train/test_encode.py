"""Encoding ahead: what is on disk is what would have been encoded, whatever happened meanwhile."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fewstep import cli, models
from fewstep.data.embeddings import Embeddings
from fewstep.data.precompute import Encoding, encode_ahead
from fewstep.data.stored import StoredEncoder
from fewstep.inference.runs import RunFolder
from fewstep.models.encoder_memory import ENCODE_BATCH
from fewstep.train import distill
from fewstep.train.checkpoint import store
from fewstep.train.state import build, check
from fewstep.utils.errors import FewstepError
from tiny import discover

PROMPTS = ["a red circle", "a blue square", "two green triangles", "a small ring", "nothing else"]
OPTIONS = {"max_sequence_length": 16}
TINIES = discover()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


@pytest.fixture(scope="session")
def encoding(model) -> Encoding:
    return Encoding(str(model), OPTIONS, device="cpu", shard=2)


@pytest.fixture
def cache(encoding, tmp_path) -> Path:
    encode_ahead(PROMPTS, encoding, tmp_path / "cache")
    return tmp_path / "cache"


def assert_equal(one, other) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor, other.tensors[name]), name


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


# ------------------------------------------------------------------------------ what is on disk


def test_what_is_read_is_what_the_backbone_encodes(model, cache):
    backbone = models.load(model, **OPTIONS)
    found = Embeddings.open(cache)
    for prompt in PROMPTS:
        assert_equal(found.read([prompt]), backbone.encode([prompt]))
    assert_equal(found.null(), backbone.null(1))
    assert found.read(["a small ring", "a red circle", "a small ring"]).batch == 3


@pytest.mark.parametrize("name", TINIES)
def test_every_family_encodes_without_its_network_and_trains_without_encoders(name, tmp_path):
    tiny, folder = TINIES[name], tmp_path / "model"
    tiny.build(folder)
    prompts = PROMPTS[:2]
    whole = models.load(folder, **tiny.options)
    done = encode_ahead(prompts, Encoding(str(folder), tiny.options, device="cpu"), tmp_path / "c")
    assert done["overlong"] == 0
    without = models.load(folder, encoders=False, **tiny.options)
    assert all(getattr(without.pipe, part, None) is None for part in without.encoder_names)
    encoder = StoredEncoder(Embeddings.open(tmp_path / "c"), without)
    assert_equal(encoder.encode(prompts[1:]), whole.encode(prompts[1:]))
    assert_equal(encoder.null(2), whole.null(2))
    noise = without.draw_noise([0], *tiny.size)
    sigma = torch.tensor([0.7])
    assert torch.equal(
        without.velocity(without.net, noise, sigma, encoder.encode(prompts[:1])),
        whole.velocity(whole.net, noise, sigma, whole.encode(prompts[:1])),
    )
    with pytest.raises(FewstepError) as refused:
        without.encode(["a"])
    assert refused.value.code == "missing-input"


def test_what_is_read_ahead_is_what_is_read(model, cache):
    without = models.load(model, encoders=False, **OPTIONS)
    plain, ahead = (StoredEncoder(Embeddings.open(cache), without) for _ in range(2))
    ahead.prefetch([PROMPTS[:2], PROMPTS[2:]])
    for prompts in (PROMPTS[2:], PROMPTS[1:3], PROMPTS[:2], PROMPTS[:2]):
        assert_equal(ahead.encode(prompts), plain.encode(prompts))
    ahead.prefetch([["not there"]])
    with pytest.raises(FewstepError):
        ahead.encode(["not there"])


def test_running_again_encodes_nothing_and_more_prompts_are_added(encoding, cache):
    before = files_of(cache)
    done = encode_ahead(PROMPTS, encoding, cache)
    assert (done["encoded"], done["kept"]) == (0, 5)
    assert files_of(cache) == before
    done = encode_ahead([*PROMPTS, "a new one", "a new one"], encoding, cache)
    assert (done["prompts"], done["encoded"], done["kept"]) == (6, 1, 5)
    assert not Embeddings.open(cache).missing(["a new one", *PROMPTS])
    assert files_of(cache).keys() > before.keys()


def test_bfloat16_stays_bfloat16(model, tmp_path):
    settings = Encoding(str(model), OPTIONS, dtype="bfloat16", device="cpu")
    encode_ahead(PROMPTS[:1], settings, tmp_path / "cache")
    found = Embeddings.open(tmp_path / "cache").read(PROMPTS[:1])
    assert found.tensors["prompt_embeds"].dtype == torch.bfloat16
    assert_equal(found, models.load(model, dtype="bfloat16", **OPTIONS).encode(PROMPTS[:1]))


# ------------------------------------------------------------------------------ interruptions


def test_killed_and_started_again_it_ends_as_if_never_stopped(
    encoding, tmp_path, monkeypatch, capsys
):
    prompts = [f"{color} ring {i}" for i in range(20) for color in ("red", "blue")]
    (tmp_path / "p.txt").write_text("\n".join(prompts) + "\n")
    folder, whole = tmp_path / "cache", tmp_path / "whole"
    encode_ahead(prompts, encoding, whole)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one thread, as in this process: equal rounding
    context = multiprocessing.get_context("forkserver")
    pipelines = "diffusers.pipelines.stable_diffusion_3"
    preload = ["fewstep.train.encode", f"{pipelines}.pipeline_stable_diffusion_3"]
    context.set_forkserver_preload(preload)

    process = context.Process(target=encode_ahead, args=(prompts, encoding, folder))
    process.start()
    deadline = time.monotonic() + 600  # a busy machine is slow, not wrong
    while len(list(folder.glob("prompts-*"))) < 3:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = len(Embeddings.open(folder))
    assert Embeddings.open(folder).verify() == []
    assert 4 <= kept < len(prompts), "it was killed too late to show anything"

    command = ["encode", str(tmp_path / "p.txt"), "--json", "--model", encoding.model]
    for setting in ("max_sequence_length=16", "device=cpu", "shard=2"):
        command += ["--set", setting]
    capsys.readouterr()
    assert cli.run([*command, "--out", str(folder)]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["kept"], done["encoded"]) == (kept, len(prompts) - kept)
    assert files_of(folder) == files_of(whole)


def test_what_was_half_written_is_made_again(encoding, cache):
    before = files_of(cache)
    torn, gone, changed = sorted(cache.glob("prompts-*"))
    torn.write_bytes(torn.read_bytes()[:-9])
    gone.unlink()
    content = bytearray(changed.read_bytes())
    content[-5] ^= 1
    changed.write_bytes(bytes(content))
    notes: list[str] = []
    done = encode_ahead(PROMPTS, encoding, cache, note=notes.append)
    assert len(done["damaged"]) == 3
    assert done["encoded"] == 5
    assert "3 damaged" in notes[0]
    assert Embeddings.open(cache).verify() == []
    assert not Embeddings.open(cache).missing(PROMPTS)
    assert {name for name in before if name.startswith("null")} <= files_of(cache).keys()


def test_two_processes_do_not_write_to_one_folder(encoding, cache):
    fcntl = pytest.importorskip("fcntl")
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FewstepError) as refused:
            encode_ahead([*PROMPTS, "more"], encoding, cache)
        assert refused.value.code == "no-access"


# ------------------------------------------------------------------------------ refusals


def test_embeddings_of_other_settings_or_models_are_refused(encoding, cache, model, tmp_path):
    from toyworld_training.pipeline import build as build_pipeline

    longer = Encoding(str(model), {"max_sequence_length": 32}, device="cpu")
    with pytest.raises(FewstepError) as refused:
        encode_ahead(PROMPTS, longer, cache)
    assert refused.value.code == "mismatch"
    with pytest.raises(FewstepError) as refused:
        encode_ahead(PROMPTS, Encoding(str(model), OPTIONS, dtype="bfloat16"), cache)
    assert refused.value.code == "mismatch"
    build_pipeline(1).save_pretrained(tmp_path / "other")
    with pytest.raises(FewstepError) as refused:
        encode_ahead(PROMPTS, Encoding(str(tmp_path / "other"), OPTIONS), cache)
    assert refused.value.code == "mismatch"


def test_an_option_left_out_is_the_default_written_out(model, tmp_path):
    encode_ahead(["a"], Encoding(str(model), {}, device="cpu"), tmp_path / "cache")
    written_out = Encoding(str(model), {"max_sequence_length": 256}, device="cpu")
    assert encode_ahead(["a"], written_out, tmp_path / "cache")["encoded"] == 0


def test_other_folders_are_left_alone(encoding, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(FewstepError) as refused:
        encode_ahead(PROMPTS, encoding, tmp_path)
    assert refused.value.code == "exists"
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(FewstepError) as refused:
        encode_ahead(PROMPTS, encoding, tmp_path)
    assert refused.value.code == "damaged"
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "index.json"}


# ------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("batch", "baseline"),
    [(1, "data.encode_ahead=false"), (ENCODE_BATCH, "data.encode_ahead=true")],
)
def test_training_from_disk_equals_training_that_encodes(
    batch, baseline, model, make_recipe, tmp_path
):
    """With batches of 1 equal to encoding on the way, with `ENCODE_BATCH` to encoding ahead."""
    encode_ahead(PROMPTS, Encoding(str(model), OPTIONS, batch=batch), tmp_path / "cache")
    few = ["train.steps=3", "checkpoint.every=3"]
    ends = []
    for name, setting in (("one", baseline), ("other", f"data.cache={tmp_path / 'cache'}")):
        distill(make_recipe(*few, setting), tmp_path / name, console=quiet())
        ends.append(store.load(tmp_path / name / "checkpoints" / "step-00000003").groups)
    for group, tensors in ends[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, ends[1][group][name]), f"{group}: {name}"
    pictures = [(tmp_path / name / "previews").glob("*.png") for name in ("one", "other")]
    one, other = ([path.read_bytes() for path in sorted(found)] for found in pictures)
    assert one and one == other
    loaded = RunFolder.open(tmp_path / "other").load_backbone()  # for sampling and evaluation
    assert loaded.encode(["not in the cache"]).batch == 1


def test_text_encoders_are_never_loaded(make_recipe, cache, tmp_path):
    recipe = make_recipe(f"data.cache={cache}", "data.encode_ahead=true")
    run = build(recipe, tmp_path / "run", check(recipe), quiet())
    parts = (*run.backbone.encoder_names, *run.backbone.tokenizer_names)
    assert [getattr(run.backbone.pipe, part) for part in parts] == [None] * 6
    assert run.encoder.null(3).batch == 3
    assert run.encoder.overlong(PROMPTS) == 0


def test_a_resumed_run_wants_its_embeddings_but_not_their_place(
    make_recipe, encoding, cache, model, tmp_path
):
    few = ["checkpoint.every=1", "preview.count=1", "health.count=1"]
    distill(make_recipe(*few, "train.steps=2", f"data.cache={cache}"), tmp_path / "run",
            console=quiet())  # fmt: skip
    encode_ahead(["one more"], encoding, cache)
    moved = cache.rename(tmp_path / "moved")
    more = [*few, "train.steps=3"]
    distill(make_recipe(*more, f"data.cache={moved}"), tmp_path / "run", resume=True,
            console=quiet())  # fmt: skip
    with pytest.raises(FewstepError) as refused:
        distill(make_recipe(*more), tmp_path / "run", resume=True, console=quiet())
    assert refused.value.code == "mismatch"


def test_a_prompt_that_is_not_there_is_told_with_the_command(make_recipe, cache, tmp_path, capsys):
    import shlex

    wanted = [f"data.cache={cache}", 'preview.prompts=["it\'s new", a red circle]']
    recipe = make_recipe(*wanted)
    with pytest.raises(FewstepError) as refused:
        distill(recipe, tmp_path / "run", console=quiet())
    assert refused.value.code == "missing-input"
    assert not (tmp_path / "run").exists()
    assert len(str(refused.value).splitlines()) == 1
    words = shlex.split(str(refused.value).split("run: fewstep ")[1])
    assert cli.run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == 1
    assert check(recipe).embeddings is not None


def test_a_cache_that_does_not_fit_is_refused_before_training(make_recipe, cache, tmp_path):
    def code_of(*overrides: str) -> str:
        with pytest.raises(FewstepError) as refused:
            distill(make_recipe(*overrides), tmp_path / "run", console=quiet())
        assert not (tmp_path / "run").exists()
        return refused.value.code

    setting = f"data.cache={cache}"
    assert code_of(f"data.cache={tmp_path / 'nowhere'}") == "missing-file"
    assert code_of(setting, "model.options.max_sequence_length=8") == "mismatch"
    shard = sorted(cache.glob("prompts-*"))[0]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(bytes(content))
    assert code_of(setting) == "damaged"
    shard.unlink()
    assert code_of(setting) == "damaged"


# ------------------------------------------------------------------------------ the command


def test_the_command_counts_what_is_odd(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = " ".join(["word"] * 300)
    Path("p.jsonl").write_bytes(
        b'{"t": "a cat"}\n' * 100
        + b'{"t": "a  cat"}\n{"t": ""}\n{"t": "\xff"}\n'
        + json.dumps({"t": long}).encode()
    )
    command = ["encode", "p.jsonl", "--column", "t", "--model", str(model)]
    command += ["--option", "max_sequence_length=16", "--prompt", "a dog"]
    assert cli.run([*command, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    counts = ("prompts", "encoded", "kept", "duplicates", "empty", "undecodable", "overlong")
    assert [made[name] for name in counts] == [3, 3, 0, 100, 1, 1, 1]
    assert Path(made["folder"]).parent == Path("embeddings")
    assert cli.run(command) == 0
    assert f"--set data.cache={made['folder']}" in capsys.readouterr().out


def test_a_run_says_at_its_start_what_is_odd(make_recipe, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat\na cat\n\n" + "word " * 300)
    console = quiet()
    few = ["train.steps=2", "preview.count=1", "health.count=1"]
    distill(make_recipe(f"data.prompts={prompts}", *few), tmp_path / "run", console=console)
    assert (
        "3 prompts (1 duplicate(s) kept, 1 empty line(s) left out, "
        "1 longer than the model reads, cut); step 0 of 2"
    ) in console.file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["p.txt"], "missing-input"),
        (["--model", "m"], "missing-input"),
        (["nowhere.txt", "--model", "m"], "missing-file"),
        (["p.txt", "--model", "./nowhere"], "missing-file"),
        (["p.txt", "--model", "MODEL", "--set", "max_len=3"], "unknown-name"),
        (["p.txt", "--model", "MODEL", "--set", "batch=0"], "out-of-range"),
        (["p.txt", "--model", "MODEL", "--set", "dtype=float3"], "unknown-name"),
        (["p.txt", "--model", "MODEL", "--set", "x"], "usage"),
        (["p.txt", "--column", "c", "--model", "MODEL"], "invalid"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments, code, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat\n")
    command = ["encode", *(str(model) if a == "MODEL" else a for a in arguments)]
    assert cli.run(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert cli.run([*command, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]
