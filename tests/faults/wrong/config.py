"""Wrong recipes: each key with each kind of value that it cannot have; mistakes; broken files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults.table import PIPELINE, RECIPE, Case
from fewstep.config import shipped

VALUES = {
    "a word": "zebra",
    "below zero": "-1",
    "a fraction": "0.5",
    "beyond 64 bits": "1000000000000000000000000000000",
    "not a number": ".nan",
    "infinite": ".inf",
    "a list": "[]",
    "a mapping": "{}",
    "true": "true",
    "null": "null",
    "a NUL": '"a\\0b"',
    "half a character": '"\\ud800"',
}
"""Kind of value -> how YAML writes one."""


def cases() -> Iterator[Case]:
    """All of them."""
    for key, node in _leaves(json.loads(shipped.SCHEMA.read_text("utf-8"))):
        for kind in _wrong_kinds(node):
            yield Case(f"{key} is {kind}", _distill(f"{key}={VALUES[kind]}"), names=(key,))
    for text, names in OVERRIDES:
        yield Case(f"--set {text}"[:90], _distill(text), names=names)
    for name, content, names in FILES:
        data = content.encode() if isinstance(content, str) else content
        yield Case(
            f"a recipe that is {name}",
            ["distill", "mine.yaml", "--out", "out"],
            setup=lambda folder, data=data: (folder / "mine.yaml").write_bytes(data),
            names=("mine.yaml" if not names else "", *names),
        )
    for name, make in PLACES.items():
        yield Case(
            f"a recipe that is {name}",
            ["distill", "mine.yaml", "--out", "out"],
            setup=lambda folder, make=make: make(folder / "mine.yaml"),
            names=("mine.yaml",),
        )
    for device in ("/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem"):
        yield Case(f"a recipe that is {device}", ["distill", device], names=(device,))
    several = [("train.stepss=1", "train.stepss"), ("train.seed=-1", "train.seed")]
    several += [("model.dtype=int4", "model.dtype"), ("grid.low=2", "grid.low")]
    yield Case(
        "four mistakes at once",
        _distill(*(text for text, _ in several)),
        names=("4 problems", *(name for _, name in several)),
    )
    yield Case(
        "mistakes that only show later, at once",
        _distill(
            "preview.prompts=nowhere.txt",
            "objectives.0.flor=1",
            "model.options.size=3",
            "train.device=warp",
            "preview.score=beauty",
        ),
        names=("5 problems", "nowhere.txt", "flor", "size", "warp", "beauty"),
    )
    yield Case("eighty unknown keys", _distill(*(f"x{n}=1" for n in range(80))), names=("80 prob",))
    yield from _sound()


def _sound() -> Iterator[Case]:
    """Odd, and right."""
    text = Path(RECIPE).read_text("utf-8")

    def trained(result: Any) -> None:
        assert (result.folder / "out/checkpoints/step-00000002/state.json").is_file()

    for name, content in (
        ("a byte order mark", "\ufeff" + text),
        ("lines that end as on Windows", text.replace("\n", "\r\n")),
        ("an alias", text.replace("{steps: 2,", "&t {steps: 2,") + "\n# *t\n"),
    ):
        yield Case(
            f"a recipe with {name}",
            ["distill", "mine.yaml", "--out", "out"],
            setup=lambda folder, text=content: (folder / "mine.yaml").write_bytes(text.encode()),
            check=trained,
        )


def _distill(*overrides: str) -> list[str]:
    return ["distill", RECIPE, "--out", "out", *(w for text in overrides for w in ("--set", text))]


def _leaves(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a recipe that holds no section, with what the schema says of it."""

    def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, inner in node["properties"].items():
            below = f"{path}.{name}" if path else name
            sections = [one for one in _options(schema, inner) if "properties" in one]
            yield from walk(sections[0], below) if len(sections) == 1 else [(below, inner)]

    for key, node in walk(schema, ""):
        options = _options(schema, node)
        if not any("properties" in one for one in options):
            yield key, {"options": options}


def _options(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be, references followed."""
    if "$ref" in node:
        return _options(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    for word in ("anyOf", "oneOf"):
        if word in node:
            return [one for inner in node[word] for one in _options(schema, inner)]
    return [node]


def _wrong_kinds(node: dict[str, Any]) -> Iterator[str]:
    """Kinds of values that a key does not take, whatever else holds."""
    options = node["options"]
    types = {one.get("type") for one in options}
    numbers = [one for one in options if one.get("type") in ("integer", "number")]
    texts = [one for one in options if one.get("type") == "string" and "enum" not in one]
    yield from ("not a number", "infinite", "a NUL", "half a character")
    if not [one for one in texts if "const" not in one]:
        yield "a word"
    if not any("minimum" not in one and "exclusiveMinimum" not in one for one in numbers):
        yield "below zero"
    if "number" not in types:
        yield "a fraction"
    if not any("maximum" not in one and "exclusiveMaximum" not in one for one in numbers):
        yield "beyond 64 bits"
    if "array" not in types:
        yield "a list"
    if "object" not in types:
        yield "a mapping"
    if "boolean" not in types:
        yield "true"
    if "null" not in types:
        yield "null"


OVERRIDES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("train", ("train", "key=value")),
    ("=1", ("key=value",)),
    ("train.=1", ("key=value",)),
    (".=1", ("key=value",)),
    ("train..steps=1", ("key=value",)),
    ("a." * 5000 + "b=1", ("key=value",)),
    ("train.steps=[", ("train.steps",)),
    ("train.steps={", ("train.steps",)),
    ("train.steps=2 3", ("train.steps",)),
    ("train.steps='2'", ("train.steps",)),
    ("train.steps=!!int zebra", ("train.steps",)),
    ("train.steps=!!python/object/apply:os.system [touch marker]", ("train.steps",)),
    ("train.steps=!!python/name:os.system", ("train.steps",)),
    ("train.steps=!!binary aGVsbG8=", ("train.steps",)),
    ("train.steps=!!timestamp zebra", ("train.steps",)),
    ("train.steps=&a [*a]", ("train.steps",)),
    ("train.steps=" + "[" * 5000, ("train.steps",)),
    ("train.steps=" + "9" * 5000, ("train.steps",)),
    ("train.steps=1", ("train.steps", "student.every")),
    ("train.steps.x=1", ("train.steps.x",)),
    ("objectives.9.floor=1", ("objectives.9.floor",)),
    ("objectives.-1.floor=1", ("objectives.-1.floor",)),
    ("objectives.x.floor=1", ("objectives.x.floor",)),
    ("objectives." + "9" * 5000 + ".floor=1", ("objectives",)),
    ("objectives.0.floor.x=1", ("objectives.0.floor.x",)),
    ("objectives=[]", ("objectives",)),
    ("objectives={}", ("objectives",)),
    ("objectives=dm", ("objectives",)),
    ("objectives=[3]", ("objectives",)),
    ("objectives=[{}]", ("objectives.0.name",)),
    ("objectives=[{name: nope}]", ("objectives.0", "nope")),
    ("objectives=[{name: ../../etc/passwd}]", ("objectives.0",)),
    ("objectives=[{name: 'os:system'}]", ("objectives.0",)),
    ("objectives=[{name: __init__}]", ("objectives.0",)),
    ("objectives=[{name: dm}, {name: dm}]", ("objectives", "dm")),
    ("objectives=[{name: dm, floor: zebra}]", ("floor",)),
    ("objectives=[{name: dm, floor: -1}]", ("floor",)),
    ("objectives=[{name: dm, floor: .nan}]", ("floor",)),
    ("objectives=[{name: dm, floor: 1e308}]", ("floor",)),
    ("objectives=[{name: dm, zzz: 1}]", ("zzz",)),
    ("objectives=[{name: dm, weight: 0}]", ("weight",)),
    ("objectives=[{name: dm, weight: -1}]", ("weight",)),
    ("objectives=[{name: ca, alpha: 1e308}]", ("alpha",)),
    ("objectives=[{name: ca, alpha: -1}]", ("alpha",)),
    ("objectives=[{name: ca, weight: [[1]]}]", ("weight",)),
    ("objectives=[{name: ca, weight: [[5, 1], [1, 1]]}]", ("weight",)),
    ("grid={name: nope}", ("grid.name", "nope")),
    ("grid=[]", ("grid",)),
    ("grid={}", ("grid",)),
    ("grid=zebra", ("grid",)),
    ("grid.zzz=1", ("grid.zzz",)),
    ("grid.shift=0", ("grid.shift",)),
    ("grid.shift=1e308", ("grid.shift",)),
    ("grid.shift=1e-308", ("grid.shift",)),
    ("grid={name: fixed, sigmas: []}", ("sigmas",)),
    ("grid={name: fixed, sigmas: [0.5, 1]}", ("sigmas",)),
    ("grid={name: fixed, sigmas: [1, 1]}", ("sigmas",)),
    ("grid={name: fixed, sigmas: [2]}", ("sigmas",)),
    ("grid={name: random, low: 0.9, high: 0.1}", ("low",)),
    ("grid={name: random, min_steps: 9, max_steps: 3}", ("min_steps",)),
    ("grid={name: random, max_steps: 1000000}", ("max_steps",)),
    ("fake_teacher.law={name: zz}", ("fake_teacher.law",)),
    ("fake_teacher.law=[]", ("fake_teacher.law",)),
    ("fake_teacher.law={name: logit_normal, std: 0}", ("std",)),
    ("fake_teacher.target={}", ("fake_teacher.target",)),
    ("fake_teacher.target={x0: 0}", ("fake_teacher.target",)),
    ("fake_teacher.target=zebra", ("fake_teacher.target",)),
    ("student.mode=full", ("mode",)),
    ("student.lora.targets=[]", ("student.lora.targets",)),
    ("student.lora.targets=[nothing]", ("nothing",)),
    ("student.lora.targets=['(']", ("(",)),
    ("student.lora.rank=60000", ("student.lora.rank",)),
    ("student.optimizer.betas=[1, 1]", ("student.optimizer.betas",)),
    ("student.optimizer.betas=[0.9]", ("student.optimizer.betas",)),
    ("student.optimizer.clip=1e-300", ("student.optimizer.clip",)),
    ("student.optimizer.lr=1e308", ("student.optimizer.lr",)),
    ("preview.steps=[]", ("preview.steps",)),
    ("preview.steps=[0]", ("preview.steps.0",)),
    ("preview.steps=[1000000]", ("preview.steps.0",)),
    ("preview.prompts=[]", ("preview.prompts",)),
    ("preview.prompts=/etc", ("preview.prompts",)),
    ("preview.prompts=/dev/zero", ("/dev/zero",)),
    ("preview.prompts=''", ("preview.prompts",)),
    ("preview.score=os:system", ("preview.score",)),
    ("preview.score=antigravity", ("antigravity",)),
    ("preview.path=x", ("preview.path",)),
    ("preview.seed=1000000000000000000000", ("preview.seed",)),
    ("health.sigmas=[]", ("health.sigmas",)),
    ("health.sigmas=[0]", ("health.sigmas.0",)),
    ("log.sinks=[nope]", ("nope",)),
    ("log.sinks=['os:system']", ("os:system",)),
    ("log.sinks=[tensorboard, tensorboard]", ("log.sinks", "tensorboard")),
    ("log.tensorboard=true", ("log.tensorboard", "log.sinks")),
    ("memory.base=int8", ("memory.base",)),
    ("memory.teacher_dtype=bfloat16", ("memory.teacher_dtype",)),
    ("memory.trained_dtype=bfloat16", ("memory.trained_dtype",)),
    ("parallel.shard=hybrid", ("parallel",)),
    ("parallel.replicate=3", ("parallel",)),
    ("data.accumulate=3", ("accumulate",)),
    ("data.prompts=nowhere.txt", ("data.prompts", "nowhere.txt")),
    ("data.prompts=''", ("data.prompts",)),
    ("data.prompts=[]", ("data.prompts",)),
    ("data.prompts=[3]", ("data.prompts.0",)),
    ("data.prompts=/dev/zero", ("/dev/zero",)),
    ("data.prompts=~nobodyhere/x.txt", ("nobodyhere",)),
    ("data.cache=/nonexistent", ("/nonexistent",)),
    ("data.cache=''", ("data.cache",)),
    ("data.column=text", ("column",)),
    ("data.split=train", ("split",)),
    ("model.path=''", ("model.path",)),
    ("model.path=./nowhere", ("nowhere",)),
    ("model.path=/dev/null", ("/dev/null",)),
    ("model.path=~nobodyhere/x", ("nobodyhere",)),
    ("model.path=package://nopackage/x", ("nopackage",)),
    ("model.path=" + "n" * 5000, ("nnn",)),
    ("model.dtype=float16", ("model.dtype",)),
    ("model.options=[]", ("model.options",)),
    ("model.options={zzz: 1}", ("zzz",)),
    ("model.options={pipe: 1}", ("pipe",)),
    ("model.options={source: x}", ("source",)),
    ("model.options={self: x}", ("self",)),
    ("model.options={t5: 3}", ("t5",)),
    ("model.options={trust_remote_code: true}", ("trust_remote_code",)),
    ("model.options={custom_pipeline: x}", ("custom_pipeline",)),
    ("model.options={max_sequence_length: 0}", ("max_sequence_length",)),
    ("model.options={max_sequence_length: -5}", ("max_sequence_length",)),
    ("model.options={max_sequence_length: 1000000}", ("max_sequence_length",)),
    ("model.options={max_sequence_length: true}", ("max_sequence_length",)),
    ("resolution.height=33", ("height", "33")),
    ("resolution.height=1", ("height",)),
    ("resolution.width=65536", ("width",)),
    ("resolution.height=16000000000", ("resolution.height",)),
    ("train.device=''", ("train.device",)),
    ("train.device=meta", ("train.device", "meta")),
    ("train.device=cuda:99", ("train.device",)),
    ("train.device=xla", ("train.device",)),
    ("train.device=warp", ("train.device", "warp")),
    ("card={a: 1}", ("card.a",)),
    ('card={a: "\\e[31m"}', ("card.a",)),
    ("evaluate.configurations=[]", ("evaluate.configurations",)),
    ("evaluate.configurations=[{model: zebra}]", ("evaluate.configurations.0.model",)),
    ("evaluate.configurations=[{model: student, steps: 100000}]", ("steps",)),
    ("evaluate.repeats=[1]", ("evaluate.repeats",)),
    ("evaluate.repeats=[1, 1]", ("evaluate.repeats.1",)),
    ("evaluate.arms=[]", ("evaluate.arms", "evaluate.configurations")),
    ("criteria=[{name: a, figure: b}]", ("criteria.0",)),
    ("criteria=[{name: a, figure: b, at_least: 1}, {name: a, figure: b, at_least: 1}]", ("a",)),
    ("train=null", ("train",)),
    ("data=null", ("data",)),
    ("model=null", ("model",)),
    ("student=null", ("student",)),
    ("zzz=1", ("zzz",)),
    ("a.b.c=1", ("a",)),
    ("\x1b[31mtrain=1", ("train",)),
)
"""What is set, and what the line must name."""

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
TINY = f"model: {{path: {PIPELINE}}}\n"
FILES: tuple[tuple[str, str | bytes, tuple[str, ...]], ...] = (
    ("empty", "", ()),
    ("a word", "zebra\n", ()),
    ("a list", "- 1\n", ()),
    ("a number", "3\n", ()),
    ("comments only", "# nothing\n", ()),
    ("two documents", TINY + "---\n" + TINY, ()),
    ("cut off", "model: {path:", ()),
    ("indented with tabs", "model:\n\tpath: x\n", ()),
    ("a bomb of aliases", BOMB, ()),
    ("an alias of itself", "model: &a [*a]\n", ()),
    ("an alias of nothing", "model: *a\n", ()),
    ("nested brackets", "[" * 300_000, ()),
    ("nested braces", "{a: " * 100_000, ()),
    ("nested blocks", "".join(" " * n + "a:\n" for n in range(1500)), ()),
    ("nested dashes", "- " * 100_000, ()),
    ("large", TINY + "# " + "x" * 5_000_000, ()),
    ("a large number", "train: {steps: " + "9" * 6000 + "}\n", ()),
    ("given twice", TINY + TINY, ()),
    ("UTF-16", TINY.encode("utf-16"), ()),
    ("GBK", "model: {path: 模型}\n".encode("gbk"), ()),
    ("binary", bytes(range(256)) * 40, ()),
    ("NUL bytes", b"\0" * 4000, ()),
    ("a zip archive", b"PK\x03\x04" + b"\0" * 60, ()),
    ("a pickle", b"\x80\x04cos\nsystem\n(S'touch marker'\ntR.", ()),
    ("a control character", "model: {path: a\x07b}\n", ()),
    ("a Python object", "!!python/object/apply:os.system [touch marker]\n", ()),
    ("a Python module", "a: !!python/module:antigravity\n", ()),
    ("a Python class", "a: !!python/object/new:os.system [touch marker]\n", ()),
    ("a Python tuple", "a: !!python/tuple [1]\n", ()),
    ("an own tag", "a: !mine 3\n", ()),
    ("a wrong tag", "a: !!float zebra\n", ()),
    ("keyed by a list", "? [a]\n: 1\n", ()),
    ("keyed by a number", "1: 2\n", ("unknown key",)),
    ("one unknown key", "zebra: 2\n", ("zebra",)),
    ("of sections that are empty", "model:\ndata:\ntrain:\n", ("model", "data")),
    ("of keys with escapes", '"a\\e[31mb": 1\n', ("control character",)),
    ("JSON of a long text", json.dumps({"model": "x" * 100_000}), ("model",)),
    ("a merge of a number", "model: {<<: 3}\n", ("model",)),
)


def _link(target: str, path: Path) -> None:
    path.symlink_to(target)


PLACES = {
    "a folder": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a dangling link": partial(_link, "nowhere"),
    "a link to itself": partial(_link, "mine.yaml"),
    "a link to /dev/zero": partial(_link, "/dev/zero"),
    "a link to a folder": partial(_link, "/"),
}
