"""Prompts: read with their oddities told, shuffled by (seed, epoch), encoded once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.records import Conditioning
from fewstep.train.prompts import Encoder, Order, read_prompts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", b"\xef\xbb\xbfa cat\r\na dog\n\na  cat\n\xff\xfe\n"),
        ("p.jsonl", b'{"caption": "a cat"}\n{"prompt": "a dog", "text": "no"}\n\n"a cat"\n\xff\n'),
        ("p.csv", b'id,prompt\n1,a cat\n2,a dog\n3,\n4,"a\tcat"\n\xff\n'),
    ],
)
def test_every_format_counts_what_is_odd(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = read_prompts(tmp_path / name)
    assert found.texts == ("a cat", "a dog", "a cat")
    assert (found.duplicates, found.empty, found.undecodable) == (1, 1, 1)
    assert found.distinct == ["a cat", "a dog"]
    assert found.describe() == (
        "3 prompts (1 duplicate(s) kept, 1 empty line(s) left out, "
        "1 line(s) left out that are not UTF-8)"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n\n", "there is no prompt in it"),
        ("p.json", "[]", "must be .txt, .jsonl, .csv, .parquet or a folder"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', r"p\.jsonl, line 2: not JSON"),
        ("p.jsonl", '{"promt": "a"}\n', r"line 1: no text under prompt, caption, text"),
        ("p.csv", "name,size\na,b\n", r"line 2: no text under prompt, caption, text"),
    ],
)
def test_files_without_prompts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(FewstepError, match=message):
        read_prompts(tmp_path / name)
    with pytest.raises(FewstepError, match="cannot read the prompts"):
        read_prompts(tmp_path / "missing.txt")


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
    """Encodes a prompt as 100 floats; remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.free = False

    def encode(self, prompts):
        assert not self.free
        self.asked.update(prompts)
        return Conditioning(
            {"text": torch.stack([torch.full((100,), hash(p) % 97.0) for p in prompts])}
        )

    def free_encoders(self):
        self.free = True


def test_prompts_are_encoded_once_while_they_fit():
    backbone = CountingBackbone()
    encoder = Encoder(backbone, cache_bytes=1e6)
    first = encoder.encode(["a", "b", "a"])
    assert torch.equal(encoder.encode(["a", "b", "a"]).tensors["text"], first.tensors["text"])
    assert backbone.asked == {"a": 1, "b": 1}


def test_the_cache_is_bounded_and_forgets_the_oldest():
    backbone = CountingBackbone()
    encoder = Encoder(backbone, cache_bytes=2 * 400)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        encoder.encode([prompt])
        assert encoder._size <= 2 * 400
    assert backbone.asked == {"a": 1, "b": 2, "c": 1}


def test_encoding_ahead_frees_the_encoders():
    backbone = CountingBackbone()
    encoder = Encoder(backbone, cache_bytes=0)
    encoder.encode_all(["a", "b", "c"])
    assert encoder.encode(["c", "a"]).batch == 2
    assert backbone.free


def test_the_empty_prompt_outlives_the_encoders(make_run):
    run = make_run("data.encode_ahead=true")
    pipe = run.backbone.pipe
    assert pipe.text_encoder is None and pipe.text_encoder_3 is None
    null = run.encoder.null(3)
    assert null.batch == 3
    assert all(torch.equal(t[0], t[2]) for t in null.tensors.values())
    assert run.encoder.null(1).tensors.keys() == run.encoder.encode(["a red circle"]).tensors.keys()
