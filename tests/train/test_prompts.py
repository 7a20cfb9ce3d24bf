"""Prompts: read with oddities counted, shuffled by (seed, epoch), encoded once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.core.types import Conditioning
from fewstep.data.order import Order, permutation
from fewstep.data.prompts import (
    ENTRY_BYTES,
    CachingEncoder,
    fault_of,
    is_blank,
    normalized,
    read_prompts,
)
from fewstep.data.rows import Rows
from fewstep.data.texts import Texts
from fewstep.utils.errors import FewstepError
from refusals import refuses

MANY = [f"prompt {number}" for number in range(100)]


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("p.txt", b"\xef\xbb\xbfa cat\r\na dog\n\na  cat\n\xff\xfe\n", "{}\n"),
        (
            "p.jsonl",
            b'{"caption": "a cat"}\n{"prompt": "a dog", "text": "no"}\n\n"a cat"\n\xff\n',
            '"{}"\n',
        ),
        ("p.csv", b'id,prompt\n1,a cat\n2,a dog\n3,\n4,"a\tcat"\n\xff\n', "5,{}\n"),
        ("p.csv", b"id;prompt\n1;a cat\n2;a dog\n3;\n4;a cat\n\xff\n", "5;{}\n"),
        ("p.tsv", b"id\tprompt\n1\ta cat\n2\ta dog\n3\t\n4\ta cat\n\xff\n", "5\t{}\n"),
    ],
)
def test_every_format_counts_what_is_odd(tmp_path, name, content, more):
    (tmp_path / name).write_bytes(content + "".join(map(more.format, MANY)).encode())
    found = read_prompts(tmp_path / name)
    assert [*found.texts] == ["a cat", "a dog", "a cat", *MANY]
    assert (found.duplicates, found.empty, found.undecodable) == (1, 1, 1)
    assert [*found.distinct] == ["a cat", "a dog", *MANY]
    (tmp_path / name).write_bytes(content)
    with refuses("invalid", tmp_path / name):  # one of four lines is too much to leave out
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("p.txt", "\n\n", "missing-input"),
        ("p.json", "[]", "invalid"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', "invalid"),
        ("p.jsonl", '{"promt": "a"}\n', "invalid"),
        ("p.csv", "name,size\na,b\n", "invalid"),
    ],
)
def test_files_without_prompts(tmp_path, name, content, code):
    (tmp_path / name).write_text(content)
    with pytest.raises(FewstepError) as refused:
        read_prompts(tmp_path / name)
    assert refused.value.code == code
    with pytest.raises(FewstepError) as refused:
        read_prompts(tmp_path / "missing.txt")
    assert refused.value.code == "missing-file"


def test_each_epoch_is_a_new_shuffle_of_everything():
    texts = [f"prompt {i}" for i in range(11)]
    order = Order(texts, seed=3)
    epochs = [order.take(11 * epoch, 11) for epoch in range(3)]
    assert all(sorted(epoch) == sorted(texts) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert Order(texts, seed=4).take(0, 11) != epochs[0]


def test_the_order_depends_on_the_cursor_alone():
    texts = [f"prompt {i}" for i in range(7)]
    whole = Order(texts, seed=0).take(0, 40)
    order = Order(texts, seed=0)
    for cursor in (33, 0, 12, 12):  # batches that cross epochs, in any order
        assert order.take(cursor, 7) == whole[cursor : cursor + 7]


class CountingBackbone:
    """Encodes a prompt as 100 floats; counts what it encoded."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.encoded: Counter[str] = Counter()

    def encode(self, prompts):
        self.encoded.update(prompts)
        return Conditioning(
            {"text": torch.stack([torch.full((100,), hash(p) % 97.0) for p in prompts])}
        )


def test_prompts_are_encoded_once_while_they_fit():
    backbone = CountingBackbone()
    encoder = CachingEncoder(backbone, cache_bytes=1e6)
    first = encoder.encode(["a", "b", "a"])
    assert torch.equal(encoder.encode(["a", "b", "a"]).tensors["text"], first.tensors["text"])
    assert backbone.encoded == {"a": 1, "b": 1}


def test_the_cache_is_bounded_and_forgets_the_oldest():
    backbone = CountingBackbone()
    encoder = CachingEncoder(backbone, cache_bytes=2 * (400 + ENTRY_BYTES))  # two embeddings
    for prompt in ("a", "b", "a", "c", "a", "b"):
        encoder.encode([prompt])
    assert backbone.encoded == {"a": 1, "b": 2, "c": 1}


def test_the_empty_prompt_outlives_the_encoders(make_run):
    run = make_run("data.encode_ahead=true")
    pipe = run.backbone.pipe
    assert pipe.text_encoder is None and pipe.text_encoder_3 is None
    assert pipe.transformer is run.backbone.net and pipe.config["transformer"][1] is not None
    null = run.encoder.null(3)
    assert null.batch == 3
    assert all(torch.equal(t[0], t[2]) for t in null.tensors.values())
    assert run.encoder.null(1).tensors.keys() == run.encoder.encode(["a red circle"]).tensors.keys()


# ------------------------------------------------------------------------------ tables and folders


def write_parquet(file, **columns):
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def write_saved(folder, texts):
    """What `datasets` writes with ``save_to_disk``: a stream of batches, and notes beside it."""
    import pyarrow

    folder.mkdir(parents=True)
    table = pyarrow.table({"text": texts})
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text("{}")


def test_parquet_counts_what_is_odd(tmp_path):
    import pyarrow

    raw = pyarrow.array([b"a cat", b"a  cat", None, b"", b"\xff\xfe"]).cast(pyarrow.binary())
    texts = raw.view(pyarrow.string())  # as damaged files hold it: not validated
    texts = pyarrow.concat_arrays([texts, pyarrow.array(MANY)])
    write_parquet(tmp_path / "p.parquet", id=pyarrow.array(range(105)), caption=texts)
    found = read_prompts(tmp_path / "p.parquet")
    assert [*found.texts] == ["a cat", "a cat", *MANY]
    assert (found.duplicates, found.empty, found.undecodable) == (1, 2, 1)


def test_a_column_of_every_format(tmp_path):
    import pyarrow

    (tmp_path / "p.jsonl").write_text('{"text": "no", "en": "a cat"}\n{"en": null}\n')
    (tmp_path / "p.csv").write_text('text,en\nno,a cat\nno,"a\nb"\n')
    named = pyarrow.array(["a cat", "a dog"]).dictionary_encode()
    write_parquet(tmp_path / "p.parquet", text=pyarrow.array(["no", "no"]), en=named)
    assert [*read_prompts(tmp_path / "p.jsonl", column="en").texts] == ["a cat"]
    assert [*read_prompts(tmp_path / "p.csv", column="en").texts] == ["a cat", "a b"]
    assert [*read_prompts(tmp_path / "p.parquet", column="en").texts] == ["a cat", "a dog"]


def test_half_a_character_in_json_is_not_utf8(tmp_path):
    many = "".join(f'"{text}"\n' for text in MANY)
    (tmp_path / "p.jsonl").write_text('"\\ud83d"\n' + many)
    found = read_prompts(tmp_path / "p.jsonl")
    assert ([*found.texts], found.undecodable) == (MANY, 1)
    assert found.digest


def test_a_folder_as_the_hub_keeps_it(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", text=["c"])
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", text=["a", "b"])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", text=["d"])
    write_parquet(tmp_path / ".cache" / "train.parquet", text=["hidden"])
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "train.csv").write_text("text\nanother kind\n")
    assert [*read_prompts(tmp_path).texts] == ["a", "b", "c"]
    assert [*read_prompts(tmp_path, split="test").texts] == ["d"]
    with pytest.raises(FewstepError) as refused:
        read_prompts(tmp_path, split="tes")
    assert refused.value.code == "missing-file"


def test_a_folder_as_datasets_saves_it(tmp_path):
    write_saved(tmp_path / "one", ["a", "b"])
    assert [*read_prompts(tmp_path / "one").texts] == ["a", "b"]
    write_saved(tmp_path / "both" / "validation", ["c"])
    assert [*read_prompts(tmp_path / "both").texts] == ["c"]
    write_saved(tmp_path / "both" / "train", ["a"])
    assert [*read_prompts(tmp_path / "both").texts] == ["a"]
    assert [*read_prompts(tmp_path / "both", split="validation").texts] == ["c"]


def test_a_data_set_of_the_hub_comes_from_the_local_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    place = tmp_path / "datasets--someone--captions"
    write_parquet(place / "snapshots" / ("0" * 40) / "data" / "train-0.parquet", en=["a cat"])
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert [*read_prompts("someone/captions", column="en").texts] == ["a cat"]
    with pytest.raises(FewstepError) as refused:
        read_prompts("someone/nothing")
    assert refused.value.code == "missing-file"


@pytest.mark.parametrize(
    ("name", "settings", "code"),
    [
        ("p.parquet", {"column": "captoin"}, "unknown-name"),
        ("p.parquet", {"column": "id"}, "invalid"),
        ("p.parquet", {"split": "train"}, "invalid"),
        ("broken.parquet", {}, "damaged"),
        ("broken.arrow", {}, "damaged"),
        ("p.txt", {"column": "caption"}, "invalid"),
        ("p.jsonl", {"column": "captoin"}, "invalid"),
        ("nothing", {}, "missing-file"),
    ],
)
def test_mistakes_about_tables(tmp_path, name, settings, code):
    write_parquet(tmp_path / "p.parquet", id=[1], caption=["a cat"])
    for broken in ("broken.parquet", "broken.arrow"):
        (tmp_path / broken).write_bytes(b"nothing of the kind")
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "p.jsonl").write_text('{"caption": "a cat"}\n')
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FewstepError) as refused:
        read_prompts(tmp_path / name, **settings)
    assert refused.value.code == code
    assert len(str(refused.value).splitlines()) == 1


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_parquet(tmp_path / "p.parquet", text=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FewstepError) as refused:
        read_prompts(tmp_path / "p.parquet")
    assert refused.value.code == "missing-dependency"


def test_a_recipe_names_column_and_split(make_run, tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", en=["a", "b"])
    write_parquet(tmp_path / "set" / "test.parquet", en=["c", "d"])
    run = make_run(f"data.prompts={tmp_path / 'set'}", "data.column=en", "data.split=test")
    assert set(run.order.take(0, 2)) == {"c", "d"}


# ------------------------------------------------------------------------------ any file, any size

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
WRITERS = {
    "p.txt": lambda texts: "\n".join(texts),
    "p.jsonl": lambda texts: "\n".join(json.dumps({"prompt": text}) for text in texts),
    "p.csv": lambda texts: _csv(texts, ","),
    "p.tsv": lambda texts: _csv(texts, "\t"),
}


def _csv(texts, delimiter):
    stream = io.StringIO()
    rows = csv.writer(stream, delimiter=delimiter)
    rows.writerows([("n", "prompt"), *enumerate(texts)])
    return stream.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(words.map(normalized), min_size=1, max_size=5), name=st.sampled_from([*WRITERS])
)
def test_what_was_written_is_read_back_or_refused(texts, name):
    sound = [text for text in texts if not fault_of(text) and not is_blank(text)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(WRITERS[name](texts).encode())
        if sound and not any(map(fault_of, texts)):
            assert [*read_prompts(file).texts] == sound
        else:
            with pytest.raises(FewstepError):
                read_prompts(file)


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode("utf-16")),
    start=st.sampled_from([b"", b"prompt\n", b'{"prompt": "', b"PAR1", b"\xff\xfe"]),
    name=st.sampled_from([*WRITERS, "p.parquet", "p.arrow"]),
)
def test_any_bytes_are_prompts_or_refused(content, start, name):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(start + content)
        try:
            found = [*read_prompts(file).texts]
        except FewstepError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert found and not any(map(fault_of, found)) and not any(map(is_blank, found))


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 4097])
def test_a_shuffle_that_is_not_drawn_is_one_too(count, monkeypatch):
    monkeypatch.setattr("fewstep.data.order.MOST_DRAWN", 0)
    one, other = (permutation(count, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    order = [one(index) for index in range(count)]
    assert sorted(order) == list(range(count))
    if count >= 1000:
        assert order != [other(index) for index in range(count)]
        moved = sum(abs(place - index) for index, place in enumerate(order)) / count
        assert 0.3 < moved / count < 0.37  # a third, where all places are equally likely


def test_texts_are_what_a_list_would_be():
    words = [f"{number % 700} ünï {'x' * (number % 50)}" for number in range(10_000)]
    texts = Texts(words)
    assert (len(texts), [*texts], texts[-1], texts[5:9]) == (10_000, words, words[-1], words[5:9])
    assert [*texts.distinct] == list(dict.fromkeys(words))
    assert texts.distinct[1::2] == list(dict.fromkeys(words))[1::2]
    assert texts.digest == hashlib.sha256("\0".join(words).encode()).hexdigest()
    assert [*texts.numbers([words[3], "another"])] == [3, -1]


@pytest.mark.parametrize("memory", [0, 3 * 29, 1e9])
def test_embeddings_come_back_from_memory_and_disk(tmp_path, memory):
    rows = Rows(5, memory=memory, folder=tmp_path / "run" / "that is not there")
    tensors = {
        "mask": torch.rand(5, 5) > 0.5,
        "half": torch.randn(5, 2, 4).bfloat16(),
        "id": torch.arange(5),
    }
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        rows.append(Conditioning({name: each[part] for name, each in tensors.items()}))
    for number in (4, 0, 2, 3, 1):
        for name, found in rows[number].tensors.items():
            assert found.dtype == tensors[name].dtype
            assert torch.equal(found, tensors[name][number : number + 1])
    assert not [*tmp_path.iterdir()]
