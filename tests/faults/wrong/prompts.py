"""Prompts: files of every kind and encoding, through every command that reads them; embeddings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from faults.entry import Result
from faults.table import PIPELINE, RECIPE, RUN, Case, copy_of_pipeline
from fewstep.utils.files import sha256_of

ENCODE = ["--model", PIPELINE, "--set", "t5=false", "--set", "max_sequence_length=1"]
NOISE = bytes(range(256)) * 200


def distill(*settings: str) -> list[str]:
    """A run with some settings."""
    return ["distill", RECIPE, "--out", "o", *(w for each in settings for w in ("--set", each))]


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "train on": lambda file: distill(f"data.prompts={file}"),
    "preview": lambda file: distill(f"preview.prompts={file}"),
    "sample": lambda file: ["sample", RUN, "--prompts", file, "--steps", "1", "--out", "o"],
    "encode": lambda file: ["encode", file, *ENCODE, "--out", "o"],
}
"""What reads a file of prompts."""

FILES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    # encodings, and what is no text
    "UTF-16 with a mark": ("p.txt", "a cat\na dog\n".encode("utf-16"), ("UTF-16", "iconv -f")),
    "UTF-16 without one": ("p.txt", "a cat\na dog\n".encode("utf-16-be"), ("UTF-16BE", "iconv")),
    "UTF-32": ("p.txt", "a cat\n".encode("utf-32"), ("UTF-32", "iconv -f")),
    "JSON lines in UTF-16": ("p.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), ("UTF-16",)),
    "CSV in UTF-16": ("p.csv", "prompt\na\n".encode("utf-16-le"), ("UTF-16LE", "iconv -f")),
    "GBK": ("p.txt", "一只猫坐在桌子上\n".encode("gbk"), ("line 1", "iconv -f GBK")),
    "Latin-1": ("p.txt", "caf\xe9\n".encode("latin-1"), ("line 1", "iconv -f WINDOWS-1252")),
    "a line of Latin-1": ("p.txt", b"a cat\ncaf\xe9 bar\na dog\n", ("line 2", "iconv")),
    "NUL": ("p.txt", b"a\0b\nc\0\n", ("p.txt",)),
    "NUL alone": ("p.txt", b"\0" * 1000, ("binary",)),
    "binary data": ("p.txt", NOISE, ("binary",)),
    "binary data as CSV": ("p.csv", NOISE, ("binary",)),
    "binary data as JSON lines": ("p.jsonl", NOISE, ("binary",)),
    "an escape sequence": ("p.txt", b"\x1b[31mred\x1b[0m\n", ("line 1", "U+001B")),
    "gzip": ("p.txt", b"\x1f\x8b\x08" + NOISE, ("gzip", "unpack")),
    "zip": ("p.csv", b"PK\x03\x04" + NOISE, ("zip", "unpack")),
    "a picture": ("p.txt", b"\x89PNG\r\n\x1a\n" + NOISE, ("PNG",)),
    "a parquet file called txt": ("p.txt", b"PAR1" + NOISE, ("parquet",)),
    # size
    "one line of 10 MB": ("p.txt", b"red circle " * 900_000, ("line 1", "characters")),
    "10 MB without a space": ("p.txt", b"a" * 10_000_000, ("line 1", "characters")),
    "a prompt of 40,000 characters": ("p.txt", b"red " * 10_000, ("line 1", "32,768")),
    "a field of 200 kB": ("p.csv", b'prompt\n"' + b"a" * 200_000 + b'"\n', ("p.csv", "line")),
    # nothing in it
    "an empty file": ("p.txt", b"", ("no prompt",)),
    "blank lines": ("p.txt", b"\n \n\t\n", ("no prompt",)),
    "a mark alone": ("p.txt", b"\xef\xbb\xbf", ("no prompt",)),
    "characters that nobody sees": ("p.txt", "\u200b\n\u2060\n".encode(), ("no prompt",)),
    "an empty CSV": ("p.csv", b"", ("no prompt",)),
    "a header alone": ("p.csv", b"prompt\n", ("no prompt",)),
    "empty JSON lines": ("p.jsonl", b"\n\n", ("no prompt",)),
    # names
    "another suffix": ("p.md", b"a\n", (".txt", ".csv")),
    "no suffix": ("prompts", b"a\n", (".txt", ".csv")),
    "an archive's suffix": ("p.txt.gz", b"\x1f\x8b", (".txt",)),
    # JSON
    "a JSON array": ("p.json", b'["a"]', (".jsonl",)),
    "a JSON array as lines": ("p.jsonl", b'["a", "b"]\n', ("line 1", "jq")),
    "JSON over several lines": ("p.jsonl", b'{\n"prompt": "a"\n}\n', ("line 1", "jq")),
    "a broken line of JSON": ("p.jsonl", b'{"prompt": "a"}\n{"prompt":\n', ("line 2", "JSON")),
    "JSON of another column": ("p.jsonl", b'{"x": "a"}\n', ("line 1", "data.column")),
    "JSON with a number": ("p.jsonl", b'{"prompt": 3}\n', ("line 1",)),
    "a number in place of JSON": ("p.jsonl", b"3\n", ("line 1",)),
    "JSON nested 100,000 deep": ("p.jsonl", b"[" * 100_000 + b"\n", ("line 1",)),
    "objects nested deep": ("p.jsonl", b'{"prompt":' * 50_000 + b"\n", ("line 1",)),
    "half a character": ("p.jsonl", b'{"prompt": "\\ud800"}\n', ("line 1", "half a character")),
    # CSV
    "CSV without a header": ("p.csv", b"a cat\na dog\n", ("line 1", "columns")),
    "a quote that is not closed": ("p.csv", b'prompt\n"abc\ndef\n', ("p.csv", "quote")),
    "text after a quote": ("p.csv", b'prompt\n"abc"d\n', ("line 2", "quote")),
    "commas without quotes": ("p.csv", b"prompt\na red, round ball\n", ("line 2", "quotes")),
    "two columns of a name": ("p.csv", b"prompt,prompt\na,b\n", ("line 1", "prompt")),
    # tables
    "broken parquet": ("p.parquet", NOISE, ("p.parquet", "parquet")),
    "an empty parquet file": ("p.parquet", b"", ("p.parquet",)),
    "parquet of its magic": ("p.parquet", b"PAR1\0\0\0\0\0\0\0\0PAR1", ("p.parquet",)),
    "a parquet footer beyond the file": (
        "p.parquet",
        b"PAR1\0\xff\xff\xff\x7fPAR1",
        ("p.parquet",),
    ),
    "broken arrow": ("p.arrow", NOISE, ("p.arrow", "arrow")),
    "an empty arrow file": ("p.arrow", b"", ("p.arrow",)),
}
"""What is wrong: the file, its content, what the message names."""

PLACES: dict[str, tuple[str, Callable[[Path], object] | None, tuple[str, ...]]] = {
    "a folder called txt": ("d.txt", lambda folder: (folder / "d.txt").mkdir(), ("d.txt",)),
    "an empty folder": ("d", lambda folder: (folder / "d").mkdir(), (".parquet", ".csv")),
    "a dangling link": ("l.txt", lambda f: (f / "l.txt").symlink_to("nowhere"), ("l.txt",)),
    "a link to itself": ("l.txt", lambda f: (f / "l.txt").symlink_to("l.txt"), ("l.txt",)),
    "a pipe": ("f.txt", lambda folder: os.mkfifo(folder / "f.txt"), ("pipe",)),
    "a link to an endless device": (
        "z.txt",
        lambda f: (f / "z.txt").symlink_to("/dev/zero"),
        ("z.txt",),
    ),
    "an endless device": ("/dev/zero", None, ("device",)),
    "no device": ("/dev/null", None, ("device",)),
    "memory of the process": ("/proc/self/mem", None, ("/proc/self/mem",)),
    "nothing": ("nowhere.txt", None, ("nowhere.txt",)),
    "a name of 5,000 characters": ("a" * 5000 + ".txt", None, ()),
    "no data set of the hub": ("some/dataset", None, ("some/dataset",)),
    "a folder with a broken table": ("d", lambda folder: _folder(folder, NOISE), ("d/b.parquet",)),
}
"""Where nothing can be read."""


def _folder(folder: Path, content: bytes) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "b.parquet").write_bytes(content)
    (folder / "d" / "train.jsonl").write_text('{"prompt": "a"}\n')


def cases() -> Iterator[Case]:
    """All of them."""
    for what, (name, content, names) in FILES.items():
        setup = partial(_write, name=name, content=content)
        for doing, command in COMMANDS.items():
            yield Case(f"{doing} {what}", command(name), setup, (*names, name.split(".")[0]))
    for what, (name, make, names) in PLACES.items():
        for doing, command in COMMANDS.items():
            yield Case(f"{doing} {what}", command(name), make, names)
    yield from _settings()
    yield from _written()
    yield from _accepted()
    yield from _stored()
    yield from _encoders()


def _write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def _settings() -> Iterator[Case]:
    tables = partial(_folder, content=b"")
    jsonl = partial(_write, name="p.jsonl", content=b'{"prompt": "a", "name": 1}\n')
    text = partial(_write, name="p.txt", content=b"a\n")
    for name, settings, setup, names in (
        ("a column of a text file", ["p.txt", "data.column=prompt"], text, ("data.column",)),
        ("a split of a file", ["p.txt", "data.split=train"], text, ("data.split",)),
        ("a mistyped column", ["p.jsonl", "data.column=promt"], jsonl, ("line 1", "'prompt'")),
        ("a column of numbers", ["p.jsonl", "data.column=name"], jsonl, ("line 1", "name")),
        ("a split that is not there", ["d", "data.split=test"], tables, ("test",)),
        ("a split that is no word", ["d", "data.split=(("], tables, ("((",)),
    ):  # fmt: skip
        yield Case(name, distill(f"data.prompts={settings[0]}", *settings[1:]), setup, names)


def _written() -> Iterator[Case]:
    odd = {
        "an escape sequence": ("\x1b[31mred", ("U+001B",)),
        "a byte that is not UTF-8": (os.fsdecode(b"caf\xe9"), ("UTF-8",)),
        "a bell": ("red\x07", ("U+0007",)),
        "100,000 words": ("red " * 30_000, ("32,768",)),
    }
    for what, (prompt, names) in odd.items():
        sample = ["sample", RUN, "--prompt", prompt, "--out", "o"]
        yield Case(f"sample {what} written out", sample, None, names)
        encode = ["encode", "--prompt", prompt, *ENCODE, "--out", "o"]
        yield Case(f"encode {what} written out", encode, None, names)
    for key in ("data.prompts", "preview.prompts"):
        yield Case(f"half a character in {key}", distill(f'{key}=["\\ud800"]'), None, ())
        yield Case(f"a number in {key}", distill(f"{key}=[3]"), None, (key,))
        yield Case(f"blanks in {key}", distill(f'{key}=[" "]'), None, ("no prompt",))
    for setting, names in {
        "teacher=true": ("teacher",),
        "network=true": ("network",),
        "encoders=false": ("encoders",),
        "force=true": ("force",),
        "pipe=1": ("pipe",),
        "dtype=float64x": ("float64x",),
        "dtype=3": ("dtype",),
        "device=[]": ("device",),
        "batch=0": ("batch",),
        "batch=true": ("batch",),
        "batch=1.5": ("batch",),
        "batch=100000000000000000000": ("batch",),
        "shard=-1": ("shard",),
        "max_sequence_length=x": ("max_sequence_length",),
    }.items():
        argv = ["encode", "--prompt", "a", "--model", PIPELINE, "--set", setting, "--out", "o"]
        yield Case(f"encode --set {setting}", argv, None, names)


# ------------------------------------------------------------------------------ what is right


def _accepted() -> Iterator[Case]:
    """Odd files that mean something: the same prompts in every form."""
    prompts = ["a red circle", "a blue square"]
    forms = {
        "a byte order mark": ("p.txt", "\ufeffa red circle\na blue square\n"),
        "Windows ends of lines": ("p.txt", "a red circle\r\n\r\na blue square\r\n"),
        "ends of lines of old Macs": ("p.txt", "a red circle\ra blue square\r"),
        "an upper suffix": ("p.TXT", "a red circle\na blue square"),
        "separators that end no line": ("p.txt", "a red\u2028circle\na\u0085blue square\n"),
        "JSON lines": ("p.jsonl", '\ufeff{"prompt": "a red circle"}\n"a blue square"\n'),
        "a number of many digits": (
            "p.jsonl", f'{{"text": "a red circle", "n": 1{"0" * 9999}}}\n"a blue square"'
        ),
        "CSV": ("p.csv", 'prompt,n\n"a red circle",1\na blue square,2\n'),
        "CSV with semicolons": ("p.csv", "n;prompt\n1;a red circle\n2;a blue square\n"),
        "tabs": ("p.tsv", "n\tprompt\n1\ta red circle\n2\ta blue square\n"),
        "a line inside of quotes": ("p.csv", 'prompt\n"a red\ncircle"\na blue square\n'),
        "a short row": ("p.csv", "n,prompt\n0\n1,a red circle\n2,a blue square\n"),
    }  # fmt: skip
    for what, (name, text) in forms.items():
        yield Case(
            f"sample {what}",
            ["sample", RUN, "--prompts", name, "--steps", "1", "--out", "o"],
            partial(_write, name=name, content=text.encode()),
            check=lambda result: _drawn(result, prompts),
        )
    yield Case(
        "an empty prompt is drawn",
        ["sample", RUN, "--prompt", "", "--steps", "1", "--out", "o"],
        check=lambda result: _drawn(result, [""]),
    )


def _drawn(result: Result, prompts: list[str]) -> None:
    rows = (result.folder / "o" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == prompts


# ------------------------------------------------------------------------------ embeddings


@cache
def _store() -> dict[str, bytes]:
    """Sound embeddings of the recipe's prompts: name -> content."""
    import tempfile

    from fewstep.data.precompute import Encoding, encode_ahead

    prompts = ["a red circle", "a blue square", "a green star", "a yellow ring"]
    options = {"t5": False, "max_sequence_length": 1}
    with tempfile.TemporaryDirectory() as folder:
        encode_ahead(prompts, Encoding(PIPELINE, options, device="cpu"), Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _damaged(folder: Path, change: Callable[[Path], object]) -> None:
    """Embeddings that something was done to."""
    (folder / "emb").mkdir()
    for name, content in _store().items():
        (folder / "emb" / name).write_bytes(content)
    change(folder / "emb")


def _index(**changes: object) -> Callable[[Path], object]:
    """An index that says something else."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text()) | changes
        (folder / "index.json").write_text(json.dumps(content))

    return change


def _shard(change: Callable[[torch.Tensor], torch.Tensor], name: str = "{}") -> Callable:
    """Other tensors under the right SHA-256."""

    def rewrite(folder: Path) -> None:
        file = _of(folder)
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        tensors = {name.format(key): change(each) for key, each in load_file(file).items()}
        save_file(tensors, file, metadata=about)
        content = json.loads((folder / "index.json").read_text())
        content["files"][file.name] = sha256_of(file)
        (folder / "index.json").write_text(json.dumps(content))

    return rewrite


def _of(folder: Path) -> Path:
    return next(folder.glob("prompts-*"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _stored() -> Iterator[Case]:
    """Runs with damaged embeddings."""
    sums = "0" * 64
    first = "emb/index.json"
    damages: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
        "no index": (lambda f: (f / "index.json").unlink(), (first, "encode")),
        "an index that is no JSON": (lambda f: (f / "index.json").write_text("{"), (first,)),
        "an index that is a list": (lambda f: (f / "index.json").write_text("[]"), (first,)),
        "an index nested deep": (lambda f: (f / "index.json").write_text("[" * 99_999), (first,)),
        "an index that is binary": (lambda f: (f / "index.json").write_bytes(NOISE), (first,)),
        "an index that is a pipe": (lambda f: _pipe(f / "index.json"), (first,)),
        "an index that is a folder": (lambda f: _replaced_by_folder(f / "index.json"), (first,)),
        "another format": (_index(format=2), (first, "version")),
        "no key": (_index(key=None), (first, "key")),
        "a key that is a list": (_index(key=[]), (first, "key")),
        "a key without options": (_index(key={"model": "a"}), (first, "key")),
        "options that are a list": (
            _index(key={"model": "a", "family": "b", "dtype": "c", "options": []}), (first, "key")
        ),
        "files that are a list": (_index(files=[]), (first, "files")),
        "no files": (_index(files={}), ("emb", "encode")),
        "a file outside": (_index(files={"../../x.safetensors": sums}), (first, "files")),
        "an absolute file": (_index(files={"/etc/passwd": sums}), (first, "files")),
        "a SHA-256 that is a number": (_index(files={"null.safetensors": 3}), (first, "files")),
        "another SHA-256": (_index(files={"null.safetensors": sums}), ("emb", "encode")),
        "a shard that is missing": (lambda f: _of(f).unlink(), ("emb", "encode")),
        "a shard cut off": (lambda f: os.truncate(_of(f), 100), ("emb", "encode")),
        "an empty shard": (lambda f: os.truncate(_of(f), 0), ("emb", "encode")),
        "a shard that is a pipe": (lambda f: _pipe(_of(f)), ("emb", "encode")),
        "the empty prompt is missing": (lambda f: (f / "null.safetensors").unlink(), ("emb",)),
        "values that are not finite": (
            _shard(lambda x: torch.full_like(x, torch.nan)),
            ("emb/prompts-", "not finite"),
        ),
        "tensors of another shape": (
            _shard(lambda x: torch.cat([x, x], -1)), ("emb", "encode")
        ),
        "tensors of another type": (_shard(torch.Tensor.half), ("emb",)),
        "fewer rows": (_shard(lambda x: x[:1].clone()), ("emb",)),
        "other names": (_shard(torch.clone, "{}x"), ("emb", "encode")),
    }  # fmt: skip
    for what, (change, names) in damages.items():
        yield Case(
            f"embeddings: {what}",
            distill("data.cache=emb"),
            partial(_damaged, change=change),
            names,
        )
    yield Case("embeddings: a file", distill("data.cache=e"), lambda f: (f / "e").touch(), ("e",))
    yield Case("embeddings: nothing", distill("data.cache=e"), None, ("e", "fewstep encode"))
    yield Case("embeddings: of other options",
        distill("data.cache=emb", "model.options.max_sequence_length=8"),
        partial(_damaged, change=lambda f: None), ("emb", "max_sequence_length"))  # fmt: skip
    yield Case("encode into another folder",
        ["encode", "--prompt", "a", *ENCODE, "--out", "d"],
        lambda f: _folder(f, b""), ("d", "--out"))  # fmt: skip


def _encoders() -> Iterator[Case]:
    """Encoders that are not sound: nothing is made with them."""

    def spoilt(folder: Path) -> None:
        file = next((copy_of_pipeline(folder) / "text_encoder").glob("*.safetensors"))
        weights = load_file(file)
        save_file({name: each * torch.nan for name, each in weights.items()}, file,
                  metadata={"format": "pt"})  # fmt: skip

    for name, argv in {
        "encode": ["encode", "--prompt", "a", "--model", "model", "--out", "o"],
        "sample": ["sample", "model", "--prompt", "a", "--steps", "1", "--out", "o"],
        "train": distill("model.path=model"),
        "train, encoded ahead": distill("model.path=model", "data.encode_ahead=true"),
    }.items():
        yield Case(f"{name} with encoders that are not finite", argv, spoilt, ("model", "finite"))
