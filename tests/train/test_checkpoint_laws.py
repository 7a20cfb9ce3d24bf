"""What goes into a checkpoint comes out: every type, shape, name and bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.train.checkpoint import store

TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
names = st.text(st.characters(codec="ascii", categories=["L", "N"]) | st.just("."), min_size=1)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def tensors(draw):
    """Any bits, so NaNs with payloads, negative zeros and subnormal numbers, too."""
    kind, shape = draw(st.sampled_from(TYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    size = torch.empty(shape, dtype=kind).numel() * kind.itemsize
    drawn = draw(st.binary(min_size=size, max_size=size))
    bits = torch.tensor(list(drawn), dtype=torch.uint8)
    bits = bits % 2 if kind is torch.bool else bits
    return bits.view(kind).reshape(shape)


def bits_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


@settings(max_examples=30)
@given(
    groups=st.dictionaries(
        st.sampled_from(["student", "optimizers", "ema"]),
        st.dictionaries(names, tensors(), min_size=1, max_size=3),
        min_size=1,
    ),
    extra=st.dictionaries(st.text(max_size=8), values, max_size=3),
)
def test_what_is_saved_comes_back_bit_for_bit(groups, extra):
    state = {"score": None, "extra": extra}
    with tempfile.TemporaryDirectory() as folder:
        found = store.load(store.save(Path(folder), 3, groups, state))
    assert found.state["extra"] == json.loads(json.dumps(extra))
    assert found.groups.keys() == groups.keys()
    for group, named in groups.items():
        assert found.groups[group].keys() == named.keys()
        for name, tensor in named.items():
            again = found.groups[group][name]
            assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
            assert bits_of(again) == bits_of(tensor)
