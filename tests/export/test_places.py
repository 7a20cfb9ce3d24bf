"""Where exports go, what they replace, what they hold, and when they are not taken any more."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from exported import card_of
from fewstep.export.note import NOTE
from fewstep.inference.load import export_model, open_model
from fewstep.inference.runs import Place
from fewstep.models.lora import LORA_WEIGHTS
from fewstep.utils.errors import FewstepError
from refusals import refuses


def test_an_export_replaces_an_export_and_nothing_else(make_run, tmp_path):
    run = make_run()
    first = export_model(run, tmp_path / "out")
    again = export_model(run, tmp_path / "out", which="last")
    assert first == again and json.loads((again / "fewstep.json").read_text())["step"] == 4
    precious = tmp_path / "precious"
    precious.mkdir()
    export_model(run, precious)  # it is empty
    for name in ("thesis.tex", "figures/one.png", ".git/HEAD"):
        mine = precious / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("years of work", encoding="utf-8")
        with refuses("exists", precious):
            export_model(run, precious)
        assert mine.read_text(encoding="utf-8") == "years of work"
        mine.unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "precious"]


def test_an_export_that_somebody_changed_is_not_replaced(make_run, tmp_path):
    run = make_run()
    out = export_model(run, tmp_path / "out")
    card = out / "README.md"
    card.write_text(card_of(out) + "My words.", encoding="utf-8")
    with refuses("exists", card):
        export_model(run, out)
    assert card_of(out).endswith("My words.")
    open_model(out)  # a card is anybody's to write
    note = json.loads((out / NOTE).read_text())
    del note["files"]  # as earlier versions wrote it: nothing says what is theirs
    (out / NOTE).write_text(json.dumps(note))
    with refuses("exists", out):
        export_model(run, out)


@pytest.mark.parametrize("what", ["a file", "a dangling link", "a folder with a bare note"])
def test_what_is_not_an_export_is_left_alone(make_run, tmp_path, what):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    elif what == "a dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        (out / NOTE).write_text("{}")
        (out / "mine").write_text("mine")
    with pytest.raises(FewstepError) as caught:
        export_model(make_run(), out)
    assert caught.value.code in ("exists", "damaged")
    assert out.is_symlink() or (out / "mine" if out.is_dir() else out).read_text() == "mine"


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_export_that_is_not_whole_is_refused(make_run, tmp_path, mode):
    run = make_run(mode)
    out = export_model(run)
    used = [name for name in json.loads((out / NOTE).read_text())["files"] if name != "README.md"]
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        *(NOTE, "README.md"),
        *used,
    }
    for name in (used[0], used[-1]):
        content = (out / name).read_bytes()
        for other in (None, b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            (out / name).unlink() if other is None else (out / name).write_bytes(other)
            for place in (out, run):
                with refuses("damaged", out / name):
                    open_model(place)
        (out / name).write_bytes(content)
    open_model(out)


@pytest.mark.parametrize(
    "note",
    [
        *("", "[1]", "nul\0", "{" * 9999, '{"size": 5}', '{"size": [64, "64"]}'),
        *('{"size": [0, 64]}', '{"shift": NaN}', '{"shift": -1}', '{"terminal": 2}'),
        *('{"step": "x"}', '{"files": [1]}'),
    ],
    ids=lambda note: note[:20],
)
def test_a_damaged_note_is_refused(make_run, note):
    out = export_model(make_run())
    whole = json.loads((out / NOTE).read_text())
    damaged = json.dumps(whole | json.loads(note)) if note.startswith('{"') else note
    (out / NOTE).write_text(damaged)
    with refuses("damaged", out / NOTE):
        open_model(out)


def test_no_card_has_a_path_of_this_machine(make_run, pipeline_folder, tmp_path):
    private = {"license": "mit", "contact": "https://alice:hunter2@example.org/x"}
    for mode in ("full", "lora"):
        run = make_run(mode, card=private, preview={"prompts": str(tmp_path / "alice.txt")})
        (tmp_path / "alice.txt").write_text("a ring")
        for address in (None, "me/student"):
            out = export_model(run, tmp_path / f"{mode}-{address is None}", address=address)
            for text in (card_of(out), (out / NOTE).read_text()):
                assert str(pipeline_folder.parent) not in text and str(tmp_path) not in text
                assert str(run.parent) not in text
                assert "hunter2" not in text and "alice:" not in text


def test_whole_exports_have_the_sources_dtype(make_run, pipeline_folder, tmp_path):
    from fewstep import models

    half = tmp_path / "half"
    shutil.copytree(pipeline_folder, half)
    net = models.load(half).net.bfloat16()
    net.save_pretrained(half / "transformer", safe_serialization=True)
    model = {"path": str(half), "options": {"max_sequence_length": 16}}
    for mode in ("full", "lora"):
        run = make_run(mode, model=model)
        for dtype in (None, "float32", "float16"):
            out = export_model(run, tmp_path / f"{mode}-{dtype}", merge=mode == "lora", dtype=dtype)
            weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
            expected = getattr(torch, dtype or "bfloat16")
            assert {weight.dtype for weight in weights.values()} == {expected}
            assert f"torch_dtype=torch.{dtype or 'bfloat16'}" in card_of(out)
        assert open_model(run, which="best").net.dtype == torch.float32  # as it was trained
        assert open_model(run, which="best", dtype="bfloat16").net.dtype == torch.bfloat16
    models.load(half, dtype="float16").net.save_pretrained(half / "transformer")
    out = export_model(run, tmp_path / "half-size", merge=True)  # to be kept, not to be drawn with
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert "torch_dtype=torch.float32" in card_of(out)
    assert open_model(out).net.dtype == torch.float32
    for dtype in ("int8", "float64", "bf16", ""):
        with refuses("unknown-name", "unknown dtype"):
            export_model(run, tmp_path / "none", dtype=dtype)
        with refuses("unknown-name", "unknown dtype"):
            open_model(run, dtype=dtype or "no")
    assert not (tmp_path / "none").exists()


def test_a_read_only_source_makes_ordinary_files(make_run, pipeline_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(pipeline_folder, source)
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o400)
    try:
        run = make_run(model={"path": str(source), "options": {"max_sequence_length": 16}})
        out = export_model(run)
    finally:
        for path in (source, *source.rglob("*")):
            path.chmod(0o755)
    umask = os.umask(0o022)
    os.umask(umask)
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask


def test_an_export_on_a_grid_of_earlier_versions_is_refused(make_run):
    exported = export_model(make_run())
    note = json.loads((exported / "fewstep.json").read_text())
    (exported / "fewstep.json").write_text(json.dumps(note | {"shift_scale": 1.0}))
    open_model(exported)
    (exported / "fewstep.json").write_text(json.dumps(note | {"shift_scale": 0.42}))
    with pytest.raises(FewstepError) as caught:
        open_model(exported)
    assert caught.value.code == "version"


def test_an_export_loads_what_it_writes_and_no_more(make_run, pipeline_folder, tmp_path):
    def counted(student):
        """Numbers held, by component; a network on the meta device holds none."""
        parts = student.backbone.pipe.components.items()
        return {
            name: sum(each.numel() for each in part.state_dict().values() if not each.is_meta)
            for name, part in parts
            if isinstance(part, torch.nn.Module)
        }

    whole = load_file(pipeline_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    for mode in ("full", "lora"):
        run = Place(make_run(mode))
        loaded = counted(run.load_to_write(adapter=False, dtype="float32"))
        extra = 0 if mode == "full" else loaded["transformer"] - counted_weights(whole)
        assert loaded == {"transformer": counted_weights(whole) + extra}
    adapter = counted(run.load_to_write(adapter=True, dtype="float32"))
    layers = load_file(export_model(run.folder) / LORA_WEIGHTS)
    assert adapter["transformer"] == counted_weights(layers) == extra
    assert not any(number for name, number in adapter.items() if name != "transformer")


def counted_weights(tensors):
    return sum(tensor.numel() for tensor in tensors.values())


def test_an_adapter_is_exported_without_a_weight_of_its_model(make_run, pipeline_folder, tmp_path):
    run = make_run("lora")
    expected = load_file(export_model(run, tmp_path / "one") / LORA_WEIGHTS)
    bare = tmp_path / "configs"
    shutil.copytree(pipeline_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    model = {"path": str(bare), "options": {"max_sequence_length": 16}}
    got = load_file(export_model(make_run("lora", model=model), tmp_path / "two") / LORA_WEIGHTS)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_weights_as_trained_can_be_exported(make_run, tmp_path):
    run = make_run("lora")  # whose adapters were not moved yet, other than their running mean
    for which, moved in (("ema", True), ("raw", False)):
        layers = load_file(export_model(run, tmp_path / which, weights=which) / LORA_WEIGHTS)
        assert any(up.any() for name, up in layers.items() if "lora_B" in name) == moved
    with refuses("unknown-name", "unknown weights"):
        export_model(run, tmp_path / "none", weights="mean")


def test_whole_exports_have_the_sources_shards(make_run, pipeline_folder, tmp_path):
    from fewstep import models

    source = tmp_path / "sharded"
    shutil.copytree(pipeline_folder, source)
    net = models.load(source).net.bfloat16()
    shutil.rmtree(source / "transformer")
    net.save_pretrained(source / "transformer", max_shard_size=40_000)
    index = "diffusion_pytorch_model.safetensors.index.json"
    expected = json.loads((source / "transformer" / index).read_text())
    assert len(set(expected["weight_map"].values())) > 2
    model = {"path": str(source), "options": {"max_sequence_length": 16}}
    for dtype in (None, "float32"):
        for mode in ("full", "lora"):
            out = tmp_path / f"{mode}-{dtype}"
            export_model(make_run(mode, model=model), out, merge=mode == "lora", dtype=dtype)
            got = json.loads((out / "transformer" / index).read_text())
            assert got["weight_map"] == expected["weight_map"]


def test_a_lora_is_written_with_the_style_that_its_teacher_has(make_run, pipeline_folder, tmp_path):
    from fewstep import models
    from fewstep.config import Recipe
    from fewstep.train.checkpoint import store

    def merged(*folders):
        pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
        for number, (folder, scale) in enumerate(folders):
            pipe.load_lora_weights(folder, weight_name=LORA_WEIGHTS, adapter_name=f"a{number}")
            pipe.set_adapters(f"a{number}", scale)
            pipe.fuse_lora(adapter_names=[f"a{number}"])
            pipe.unload_lora_weights()
        return pipe.transformer.state_dict()

    style = export_model(make_run("lora"), tmp_path / "style")
    model = {"path": str(pipeline_folder), "options": {"max_sequence_length": 16}}
    run = make_run("lora", model=model | {"loras": [{"path": str(style), "scale": 0.5}]})
    groups = {
        name: load_file(store.find(run, "best") / f"{name}.safetensors")
        for name in ("student", "ema")
    }
    identity = models.fingerprints(Recipe.from_file(run / "config.yaml").model.address)
    store.save(run / "checkpoints", 6, groups, {"score": 0.9, "identity": identity})
    alone = export_model(run, tmp_path / "alone")
    both = export_model(run, tmp_path / "both", format="lora", merge=True)
    expected, got = merged((style, 0.5), (alone, 1.0)), merged((both, 1.0))
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(weight, got[name]) for name, weight in merged((alone, 1.0)).items())
