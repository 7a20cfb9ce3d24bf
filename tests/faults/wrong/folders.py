"""Model folders that are damaged, incomplete, of another kind, or say what cannot be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from faults.table import RECIPE, Case, Result, copy_of_pipeline

SAMPLE = ("sample", "model", "--prompt", "a", "--steps", "1", "--out", "o")
DRY = ("distill", RECIPE, "--set", "model.path=model", "--dry-run")
NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
Change = Callable[[Path], object]


def weights_of(component: Path) -> Path:
    """The one weights file of a component."""
    return next(component.glob("*.safetensors"))


def edit(file: Path, **values: Any) -> None:
    """Sets keys of a JSON file; `...` removes one."""
    content = json.loads(file.read_text("utf-8"))
    for key, value in values.items():
        content.pop(key, None)
        if value is not ...:
            content[key] = value
    file.write_text(json.dumps(content), "utf-8")


def _tensor(change: Callable[[dict[str, torch.Tensor], str], object]) -> Change:
    """A change of one tensor in the middle of a component's weights."""

    def apply(component: Path) -> None:
        file = weights_of(component)
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        floats = sorted(name for name, each in tensors.items() if each.is_floating_point())
        change(tensors, floats[len(floats) // 2])
        save_file(tensors, file, metadata={"format": "pt"})

    return apply


def _fill(value: float) -> Change:
    return _tensor(lambda tensors, name: tensors[name].view(-1)[-1:].fill_(value))


def _bytes(change: Callable[[bytes], bytes]) -> Change:
    def apply(component: Path) -> None:
        file = weights_of(component)
        file.write_bytes(change(file.read_bytes()))

    return apply


def _to_pickle(component: Path) -> None:
    file = weights_of(component)
    torch.save(load_file(file), component / f"{file.stem}.bin")
    file.unlink()


def _to_other(suffix: str, component: Path) -> None:
    weights_of(component).rename(component / f"model{suffix}")


def _to_pipe(component: Path) -> None:
    file = weights_of(component)
    file.unlink()
    os.mkfifo(file)


def _to_link(target: str, component: Path) -> None:
    file = weights_of(component)
    file.unlink()
    file.symlink_to(target)


def _to_folder(component: Path) -> None:
    file = weights_of(component)
    file.unlink()
    file.mkdir()


WEIGHTS: dict[str, Change] = {
    "a tensor is missing": _tensor(lambda tensors, name: tensors.pop(name)),
    "a tensor has another name": _tensor(lambda t, name: t.update({f"{name}_": t.pop(name)})),
    "a tensor has another shape": _tensor(lambda t, name: t.update({name: t[name][None]})),
    "a tensor too many": _tensor(lambda t, name: t.update({"more.weight": torch.ones(2)})),
    "a tensor holds NaN": _fill(float("nan")),
    "a tensor is infinite": _fill(float("inf")),
    "weights are truncated": _bytes(lambda content: content[: len(content) // 2]),
    "weights are empty": _bytes(lambda content: b""),
    "weights are a pointer of git-lfs": _bytes(lambda content: b"version 1\noid sha256:0\n"),
    "weights have an endless header": _bytes(lambda content: b"\0" * 7 + b"\x10" + content[8:]),
    "no weights": lambda component: weights_of(component).unlink(),
    "weights are pickled": _to_pickle,
    "weights are Flax": partial(_to_other, ".msgpack"),
    "weights are ONNX": partial(_to_other, ".onnx"),
    "weights are GGUF": partial(_to_other, ".gguf"),
    "weights are a pipe": _to_pipe,
    "weights are a folder": _to_folder,
    "weights are a dangling link": partial(_to_link, "nowhere"),
    "weights are a link to itself": partial(_to_link, "model.safetensors"),
    "weights are a device": partial(_to_link, "/dev/zero"),
    "no folder": shutil.rmtree,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "is missing": None,
    "is empty": b"",
    "is binary": bytes(range(256)),
    "is cut off": b'{"a": 1, ',
    "is a list": b"[1, 2]",
    "is a number": b"7",
    "is nested deeply": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "is of another class": b'{"_class_name": "Other", "model_type": "bert"}',
    "has no settings": b"{}",
}  # fmt: skip
ABSURD: dict[str, tuple[str, ...]] = {
    "transformer": (
        "num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels",
        "patch_size", "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim",
        "pos_embed_max_size",
    ),
    "vae": (
        "latent_channels", "in_channels", "out_channels", "norm_num_groups", "layers_per_block",
    ),
    "text_encoder": (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings", "intermediate_size",
    ),
    "text_encoder_3": ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size"),
}  # fmt: skip
VALUES = (0, -1, 10**6, 10**18, "abc", [1, 2, 3], {})
OTHERS: tuple[tuple[str, str, Any], ...] = (
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", -1.5),
    ("vae", "scaling_factor", 1e30),
    ("vae", "scaling_factor", "0.36"),
    ("vae", "scaling_factor", None),
    ("vae", "shift_factor", "0.1"),
    ("vae", "block_out_channels", []),
    ("vae", "block_out_channels", [0]),
    ("vae", "act_fn", "sillu"),
    ("vae", "down_block_types", ["os.system"]),
    ("transformer", "qk_norm", "other"),
    ("transformer", "sample_size", 0),
    ("transformer", "sample_size", -16),
    ("transformer", "sample_size", 10**9),
    ("transformer", "sample_size", "x"),
    ("text_encoder", "hidden_act", "other"),
    ("text_encoder", "layer_norm_eps", "x"),
    ("text_encoder", "layer_norm_eps", -1),
    ("text_encoder", "attn_implementation", "someone/kernel"),
    ("text_encoder_3", "layer_norm_epsilon", None),
    ("text_encoder_3", "feed_forward_proj", "other"),
)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _of_weights()
    yield from _of_configurations()
    yield from _of_tokenizers()
    yield from _of_indexes()
    yield from _of_other_kinds()
    yield from _of_settings()
    yield from _accepted()


def _damaged(folder: Path, component: str, change: Change) -> None:
    change(copy_of_pipeline(folder) / component)


def _case(name: str, change: Change, *, where: str = "", argv: Any = SAMPLE, **more: Any) -> Case:
    """A copy of the embedded pipeline with a change in one of its parts."""
    more.setdefault("names", (where,))
    return Case(name, argv, setup=lambda folder: _damaged(folder, where, change), **more)


def _of_weights() -> Iterator[Case]:
    for component in NETWORKS:
        for words, change in WEIGHTS.items():
            yield _case(f"{component}: {words}", change, where=component)
    for component in ("transformer", "text_encoder"):
        for words in ("a tensor is missing", "weights are truncated", "no weights"):
            change = WEIGHTS[words]
            yield _case(f"dry run, {component}: {words}", change, where=component, argv=DRY)


def _write(name: str, content: bytes | None, component: Path) -> None:
    file = component / name
    file.unlink() if content is None else file.write_bytes(content)


def _of_configurations() -> Iterator[Case]:
    names = dict.fromkeys(NETWORKS, "config.json") | {"scheduler": "scheduler_config.json"}
    for component, file in names.items():
        for words, content in CONFIGS.items():
            if (component, words) == ("scheduler", "has no settings"):
                continue  # then it has the defaults of its class
            change = partial(_write, file, content)
            yield _case(f"{component}/{file} {words}", change, where=component)
    for component, keys in ABSURD.items():
        for key in keys:
            for value in VALUES:
                yield _setting(component, key, value)
    for component, key, value in OTHERS:
        size = {"names": ("height",)} if value == -16 else {}
        yield _setting(component, key, value, **size)
    for component in NETWORKS:
        quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        yield _setting(
            component, "quantization_config", quantised, names=(component, "memory.base")
        )


def _setting(component: str, key: str, value: Any, **more: Any) -> Case:
    def change(folder: Path) -> None:
        edit(folder / "config.json", **{key: value})

    text = json.dumps(value)
    more.setdefault("names", ("model",))  # what fails in use is blamed on the whole
    return _case(f"{component}/config.json {key}={text}", change, where=component, **more)


def _of_tokenizers() -> Iterator[Case]:
    for component in TOKENIZERS:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            for words in ("is missing", "is empty", "is binary", "is cut off", "is a list"):
                change = partial(_write, file, CONFIGS[words])
                yield _case(f"{component}/{file} {words}", change, where=component)
        yield _case(f"{component}: no folder", shutil.rmtree, where=component)


def _of_indexes() -> Iterator[Case]:
    def case(words: str, change: Change, *names: str) -> Case:
        change_index = lambda model: change(model / "model_index.json")  # noqa: E731
        return _case(
            f"model_index.json {words}", change_index, names=names or ("model_index.json",)
        )

    for words, content in CONFIGS.items():
        if words != "is of another class":
            yield case(words, partial(_at, content))
    for name in (*NETWORKS[:4], *TOKENIZERS[:2], "scheduler"):
        yield case(
            f"has no {name}", lambda file, name=name: edit(file, **{name: [None, None]}), name
        )
        yield case(f"lacks {name}", lambda file, name=name: edit(file, **{name: ...}), name)
        for entry in (
            ["os", "system"], ["subprocess", "Popen"], ["diffusers", "NoSuchClass"],
            ["builtins", "exec"], ["torch", "load"], ["evil", "Model"],
            ["diffusers", "UNet1DModel"], ["diffusers"], 7, "transformer", {"a": 1}, [1, 2],
        ):  # fmt: skip
            text = json.dumps(entry)
            yield case(f"says {name} is {text}", lambda f, n=name, e=entry: edit(f, **{n: e}), name)
    for value in ("OnnxStableDiffusionPipeline", "NoSuchPipeline", 7, None, ["a"], "os.system"):
        yield case(f"is of class {value!r}", lambda f, v=value: edit(f, _class_name=v), "model")
    yield case(
        "holds a key twice", lambda f: f.write_text('{"_class_name": "A", "_class_name": "B"}')
    )


def _at(content: bytes | None, file: Path) -> None:
    _write(file.name, content, file.parent)


KINDS: dict[str, tuple[str, ...]] = {
    "a ComfyUI folder": ("unet/a.safetensors", "clip/b.safetensors", "vae/c.safetensors"),
    "a folder of checkpoints": ("checkpoints/a.safetensors",),
    "a folder with a single file": ("a.safetensors",),
    "a folder of GGUF files": ("a.gguf",),
    "a LoRA of PEFT": ("adapter_config.json", "adapter_model.safetensors"),
    "a folder of something else": ("notes.odt",),
}
PATHS = ("nowhere", "a/b/c", "x" * 5000, "~nobody-here/m", "", "package://os/x", "/dev/null")


def _of_other_kinds() -> Iterator[Case]:
    for name in ("m.safetensors", "m.ckpt", "m.gguf", "m.pt", "m.bin"):
        for argv in (
            ("sample", name, "--prompt", "a"),
            ("distill", RECIPE, "--set", f"model.path={name}", "--out", "o"),
        ):
            setup = partial(_make, name)
            yield Case(f"{argv[0]}: the file {name}", argv, setup=setup, names=(name,))
    for key, value, names in (
        ("model.loras", "[{path: nowhere.safetensors}]", ("nowhere.safetensors",)),
        ("model.loras", "[{path: m.safetensors}]", ("m.safetensors",)),
        ("model.loras", "[{path: m.safetensors, scale: x}]", ("model.loras", "scale")),
        ("model.variant", "fp16", ("fp16", "model.variant")),
        ("student.init", "nowhere", ("student.init", "nowhere")),
        ("student.init", "m.safetensors", ("m.safetensors",)),
        ("student.init", "{relative_to: a}", ("student.init", "path")),
    ):
        argv = ("distill", RECIPE, "--set", f"{key}={value}", "--out", "o")
        setup = partial(_make, "m.safetensors")
        yield Case(f"{key}={value}", argv, setup=setup, names=names)
    sample = ("sample", "model", "--prompt", "a")
    for words, names in KINDS.items():
        setup = partial(_make, *(f"model/{name}" for name in names))
        yield Case(words, sample, setup=setup, names=("model",))
    for words, path in (("the index itself", "model/model_index.json"), ("a part", "model/vae")):
        yield Case(
            words, ("sample", path, "--prompt", "a"), setup=copy_of_pipeline, names=("give",)
        )
    for path in PATHS:
        yield Case(f"the path {path[:20]!r}", ("sample", path, "--prompt", "a"))


def _make(*names_and_folder: Any) -> None:
    """Writes files of a byte into a folder, the last argument."""
    *names, folder = names_and_folder
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def _of_settings() -> Iterator[Case]:
    for height in (8, 100, 512, 10**6, 10**12, 0, -64):
        words = ("distill", RECIPE, "--set", f"resolution.height={height}", "--out", "o")
        yield Case(f"a height of {height}", words)
    for value in (0, -5, 10**6, 10**30, 1.5, "x", None, [], True):
        text = f"model.options.max_sequence_length={json.dumps(value)}"
        yield Case(f"the option {text}", ("distill", RECIPE, "--set", text, "--out", "o"))
    for name in ("pipe", "source", "self", "no_such", "__class__"):
        words = ("distill", RECIPE, "--set", f"model.options.{name}=1", "--out", "o")
        yield Case(f"the option {name}", words, names=(name,))


def _accepted() -> Iterator[Case]:
    def is_picture(result: Result) -> None:
        from PIL import Image

        picture = next((result.folder / "o").glob("*.png"))
        assert Image.open(picture).convert("L").getextrema()[0] < 250

    def without_t5(model: Path) -> None:
        edit(model / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
        for name in ("text_encoder_3", "tokenizer_3"):
            shutil.rmtree(model / name)

    def as_variant(model: Path) -> None:
        for component in NETWORKS:
            file = weights_of(model / component)
            file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))

    yield _case("saved without T5", without_t5, check=is_picture)
    yield _case("only the variant fp16", as_variant, check=is_picture)
    link = lambda model: (model.rename(model.with_name("real")), model.symlink_to("real"))  # noqa: E731
    yield _case("a link to a folder", link, check=is_picture)
