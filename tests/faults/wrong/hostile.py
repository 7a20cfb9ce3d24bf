"""Files with a planted payload, in every place that the program reads: it never runs.

The payload writes a file ``marker`` into the working folder, where it counts as something written.
Files that stand in for others are refused; those that merely lie beside are never touched.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults.entry import Result
from faults.table import RECIPE, RUN, Case, copy_of_pipeline, copy_of_run, exported_folder

CODE = "open('marker', 'w').write('payload')\n"
MODULE = CODE + (
    "class Evil:\n    def __init__(self, *a, **k):\n        pass\n"
    "    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n"
    "load = Evil\n"
)
TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch marker') }}"


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE,)


def pickled(form: str) -> bytes:
    """A payload as a bare pickle, as `torch.save` packs one, or as NumPy does."""
    plain = pickle.dumps({"weight": _Payload()})
    if form == "pickle":
        return plain
    if form == "npy":
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + plain
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3\n")
    return packed.getvalue()


FORMS = ("pickle", "torch", "npy")
COMMANDS = {
    "sample": ["sample", "{}", "--prompt", "a", "--steps", "1", "--out", "out"],
    "distill": ["distill", RECIPE, "--out", "out", "--set", "model.path={}"],
    "encode": ["encode", "--prompt", "a", "--model", "{}", "--set", "t5=false", "--out", "out"],
}
"""What loads a model folder."""
WEIGHTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
BESIDE = (
    "pipeline.py", "modeling.py", "transformer/modeling.py", "text_encoder/__init__.py",
    "scheduler/scheduler.py", "tokenizer/tokenization.py", "diffusers.py", "transformers.py",
    "transformer/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin",
    "vae/diffusion_pytorch_model.ckpt", "transformer/diffusion_pytorch_model.pt", "weights.pkl",
    "tokenizer/added_tokens.pkl", "setup.py", "conftest.py",
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _weights()
    yield from _indexes()
    yield from _configurations()
    yield from _runs()
    yield from _states()
    yield from _adapters()
    yield from _names()
    yield from _features()
    yield from _tables()
    yield from _others()


def _drawn(result: Result) -> None:
    """The command did its work, and the payload none."""
    assert not (result.folder / "marker").exists(), "the payload ran"
    assert any(path.is_file() for path in (result.folder / "out").rglob("*"))


def _model(
    name: str, change: Callable[[Path], object], command: str = "sample", *, runs: bool = False
) -> Case:
    """A copy of the embedded pipeline, changed, in a command; refused unless it `runs`."""

    def setup(folder: Path) -> None:
        model = copy_of_pipeline(folder)
        change(model)
        (folder / "evil.py").write_text(MODULE)

    argv = [word.replace("{}", "./model") for word in COMMANDS[command]]
    return Case(f"{command}: {name}", argv, setup, check=_drawn if runs else None)


def _replaced(model: Path, part: str, form: str, suffix: str) -> None:
    """The weights of a part become a payload, under their name or another."""
    weights = next((model / part).glob("*.safetensors"))
    weights.unlink()
    weights.with_suffix(suffix).write_bytes(pickled(form))


def _weights() -> Iterator[Case]:
    for part in WEIGHTS:
        for form in FORMS:
            change = partial(_replaced, part=part, form=form, suffix=".safetensors")
            yield _model(f"{part}: {form} in place of safetensors", change)
        for suffix in (".bin", ".pt", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf"):
            change = partial(_replaced, part=part, form="torch", suffix=suffix)
            yield _model(f"{part}: {suffix} only", change)
    for command, part in (("distill", "transformer"), ("encode", "text_encoder")):
        for suffix in (".safetensors", ".bin", ".pt"):
            change = partial(_replaced, part=part, form="torch", suffix=suffix)
            yield _model(f"{part}: {suffix}", change, command)
    for name in BESIDE:
        data = MODULE.encode() if name.endswith(".py") else pickled("torch")

        def beside(model: Path, name: str = name, data: bytes = data) -> None:
            (model / name).write_bytes(data)

        yield _model(f"{name} beside", beside, runs=True)


def _indexes() -> Iterator[Case]:
    for target in ("../../evil.safetensors", "/etc/passwd", "evil.bin", "../transformer/evil.pt"):

        def sharded(model: Path, target: str = target) -> None:
            weights = model / "transformer/diffusion_pytorch_model.safetensors"
            weights.unlink()
            if "evil" in target:
                (weights.parent / target).write_bytes(pickled("torch"))
            index = {"metadata": {}, "weight_map": {"pos_embed.proj.weight": target}}
            weights.with_name(weights.name + ".index.json").write_text(json.dumps(index))

        yield _model(f"an index that names {target}", sharded)


def _edited(model: Path, file: str, **changes: Any) -> None:
    path = model / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def _configurations() -> Iterator[Case]:
    index = "model_index.json"
    for name, changes in (
        ("a pipeline class as code", {"_class_name": ["pipeline", "Evil"]}),
        ("a pipeline class of a module", {"_class_name": "evil.Evil"}),
        ("a pipeline class of the system", {"_class_name": "os.system"}),
        ("a scheduler as code", {"scheduler": ["evil", "Evil"]}),
        ("a network as code", {"transformer": ["evil", "Evil"]}),
        ("an autoencoder as code", {"vae": ["evil", "Evil"]}),
        ("a text encoder as code", {"text_encoder": ["evil", "Evil"]}),
        ("a tokenizer as code", {"tokenizer": ["evil", "Evil"]}),
        ("a network of the system", {"transformer": ["os", "system"]}),
        ("a network of builtins", {"transformer": ["builtins", "exec"]}),
        ("a tokenizer of subprocess", {"tokenizer": ["subprocess", "Popen"]}),
        ("a part outside the folder", {"../evil": ["evil", "Evil"]}),
    ):

        def change(model: Path, changes: dict[str, Any] = changes) -> None:
            _edited(model, index, **changes)
            for part in (".", "transformer", "vae", "scheduler", "text_encoder", "tokenizer"):
                (model / part / "evil.py").write_text(MODULE)
            (model / "pipeline.py").write_text(MODULE)

        yield _model(name, change, runs=name == "a part outside the folder")
        if "network" in name or "tokenizer" in name:
            yield _model(name, change, "distill")
    automatic: dict[str, Any] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    automatic["AutoTokenizer"] = ["evil.Evil", None]
    for file in (
        "text_encoder/config.json", "text_encoder_2/config.json", "tokenizer/tokenizer_config.json",
        "transformer/config.json", "vae/config.json",
    ):  # fmt: skip

        def mapped(model: Path, file: str = file) -> None:
            _edited(model, file, auto_map=automatic, trust_remote_code=True)
            (model / file).with_name("evil.py").write_text(MODULE)

        yield _model(f"auto_map in {file}", mapped, runs=True)
    for name, file, changes in (
        ("custom_pipeline", index, {"custom_pipeline": "evil"}),
        ("a network's class as code", "transformer/config.json", {"_class_name": "evil.Evil"}),
        ("a template of chats", "tokenizer/tokenizer_config.json", {"chat_template": TEMPLATE}),
    ):
        yield _model(name, partial(_edited, file=file, **changes), runs=True)
    quantised = {"quantization_config": {"quant_method": "evil"}}
    evil = {"_class_name": "evil.Evil"}
    for name, file, changes in (
        ("a scheduler's class as code", "scheduler/scheduler_config.json", evil),
        ("quantised by code", "transformer/config.json", quantised),
    ):
        yield _model(name, partial(_edited, file=file, **changes))


def _run(name: str, change: Callable[[Path], object], *argv: str, runs: bool = False) -> Case:
    """A copy of a finished run, changed, in a command."""

    def setup(folder: Path) -> None:
        change(copy_of_run(folder))
        (folder / "evil.py").write_text(MODULE)

    return Case(f"{argv[0]}: {name}", argv, setup, check=_drawn if runs else None)


SAMPLE = ("sample", "run", "--prompt", "a", "--steps", "1", "--out", "out")
EXPORT = ("export", "run", "--out", "out")
EVALUATE = ("evaluate", "run")
RESUME = ("distill", RECIPE, "--out", "run", "--resume", "--set", "train.steps=4")


def _runs() -> Iterator[Case]:
    for file in ("student", "ema", "fake_teacher", "optimizers"):
        for form in FORMS:

            def damage(run: Path, file: str = file, form: str = form) -> None:
                for step in (run / "checkpoints").iterdir():
                    (step / f"{file}.safetensors").write_bytes(pickled(form))

            if file == "ema":
                yield _run(f"{file} as {form}", damage, *SAMPLE)
                yield _run(f"{file} as {form}", damage, *EXPORT)
            yield _run(f"{file} as {form}", damage, *RESUME)


def _states() -> Iterator[Case]:
    tagged = "!!python/object/apply:os.system ['touch marker']\n"
    for argv in (SAMPLE, EXPORT, EVALUATE):
        change = partial(_write, name="config.yaml", data=tagged.encode())
        yield _run("tags in config.yaml", change, *argv)
    for name, change in (
        ("state.json as a pickle", partial(_write, name="state.json", data=pickled("pickle"))),
        ("state.json that names a file outside", _traversal),
        ("weights as .bin only", _renamed),
    ):

        def each_step(run: Path, change: Callable[[Path], object] = change) -> None:
            for step in (run / "checkpoints").iterdir():
                change(step)

        for argv in (SAMPLE, EXPORT, RESUME):
            yield _run(name, each_step, *argv)


def _renamed(step: Path) -> None:
    (step / "ema.safetensors").unlink()
    (step / "ema.bin").write_bytes(pickled("torch"))


def _write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def _traversal(step: Path) -> None:
    (step / "../../../evil.safetensors").write_bytes(pickled("torch"))
    state = json.loads((step / "state.json").read_text())
    state["files"] = {f"../../../{'evil'}.safetensors": "0" * 64, **state.get("files", {})}
    (step / "state.json").write_text(json.dumps(state))


def _exported(folder: Path) -> Path:
    """A LoRA folder: what `fewstep export` writes of a run."""
    return Path(shutil.copytree(exported_folder(), folder / "lora"))


def _adapters() -> Iterator[Case]:
    argv = ["sample", "lora", "--prompt", "a", "--steps", "1", "--out", "out"]
    weights = "pytorch_lora_weights"
    for form in FORMS:

        def replaced(folder: Path, form: str = form) -> None:
            (_exported(folder) / f"{weights}.safetensors").write_bytes(pickled(form))

        yield Case(f"sample: an adapter as {form}", argv, replaced)
    for suffix in (".bin", ".pt", ".ckpt"):

        def renamed(folder: Path, suffix: str = suffix) -> None:
            lora = _exported(folder)
            (lora / f"{weights}.safetensors").unlink()
            (lora / f"{weights}{suffix}").write_bytes(pickled("torch"))

        yield Case(f"sample: an adapter as {suffix}", argv, renamed)
    for name in ("adapter_config.json", "modeling.py", "adapter_model.bin", "__init__.py"):

        def beside(folder: Path, name: str = name) -> None:
            lora, code = _exported(folder), MODULE.encode()
            data = pickled("torch") if name.endswith(".bin") else code
            if name.endswith(".json"):
                data = json.dumps({"auto_mapping": {"parent_library": "evil"}}).encode()
            (lora / name).write_bytes(data)
            (folder / "evil.py").write_bytes(code)

        yield Case(f"sample: {name} beside an adapter", argv, beside, check=_drawn)


NAMES = ("evil", "evil:load", "evil:Evil", "evil.Evil", "os:system", "./evil.py", "evil.py")
"""What might be taken for code to import; `evil` lies in the working folder."""


def _names() -> Iterator[Case]:
    def setup(folder: Path) -> None:
        (folder / "evil.py").write_text(MODULE)

    distil = ["distill", RECIPE, "--out", "out", "--set"]
    measure = ["evaluate", RECIPE, "--teacher-only", "--out", "out", "--set"]
    for name in NAMES:
        for start, key in (
            (distil, "objectives=[{name: '%s'}]"),
            (distil, "log.sinks=['%s']"),
            (distil, "preview.score='%s'"),
            (measure, "evaluate.metrics=['%s']"),
            (measure, "evaluate.features='%s'"),
        ):
            yield Case(f"{key % name}", [*start, key % name], setup)
        yield Case(f"--format {name}", ["export", RUN, "--format", name, "--out", "o"], setup)


def _features() -> Iterator[Case]:
    encoder = "evaluate.features=clip:./clip"
    argv = ["evaluate", RECIPE, "--teacher-only", "--out", "out", "--set", encoder]
    for form in ("pickle", "torch"):
        for file in ("pytorch_model.bin", "model.safetensors"):

            def clip(folder: Path, file: str = file, form: str = form) -> None:
                (folder / "clip").mkdir()
                config = {"model_type": "clip", "auto_map": {"AutoModel": "evil.Evil"}}
                (folder / "clip/config.json").write_text(json.dumps(config))
                (folder / "clip/evil.py").write_text(MODULE)
                (folder / "clip" / file).write_bytes(pickled(form))

            yield Case(f"evaluate: a feature network with {file} as {form}", argv, clip)


def _tables() -> Iterator[Case]:
    for suffix in (".parquet", ".arrow", ".npy", ".pt", ".pkl", ".json", ".jsonl", ".csv", ".txt"):
        for form in ("pickle", "torch"):

            def prompts(folder: Path, suffix: str = suffix, form: str = form) -> None:
                (folder / f"p{suffix}").write_bytes(pickled(form))

            words = ["distill", RECIPE, "--out", "out", "--set", f"data.prompts=p{suffix}"]
            yield Case(f"distill: prompts{suffix} as {form}", words, prompts, names=(f"p{suffix}",))

    def script(folder: Path) -> None:
        (folder / "data").mkdir()
        (folder / "data/data.py").write_text(MODULE)

    words = ["distill", RECIPE, "--out", "out", "--set", "data.prompts=./data"]
    yield Case("distill: a data set's script", words, script, names=("data",))


def _others() -> Iterator[Case]:
    for name in ("index.json", "prompts-00000000.safetensors"):

        def cache(folder: Path, name: str = name) -> None:
            (folder / "cache").mkdir()
            key = {"format": 1, "key": {}, "files": {"../evil.safetensors": "0" * 64}}
            (folder / "cache/index.json").write_text(json.dumps(key))
            (folder / "cache" / name).write_bytes(pickled("torch"))
            (folder / "evil.safetensors").write_bytes(pickled("torch"))

        words = ["distill", RECIPE, "--out", "out", "--set", "data.cache=./cache"]
        yield Case(f"distill: embeddings with {name}", words, cache)
    yield Case(
        "distill: a recipe as a pickle",
        ["distill", "mine.yaml", "--out", "out"],
        lambda folder: (folder / "mine.yaml").write_bytes(pickled("pickle")),
    )
    for file in ("summary.json", "evaluation.json"):

        def figures(folder: Path, file: str = file) -> None:
            (folder / "run").mkdir()
            (folder / "run" / file).write_bytes(pickled("pickle"))

        yield Case(f"compare: {file} as a pickle", ["compare", "run", "run"], figures)
