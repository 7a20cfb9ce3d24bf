"""A program on tensors without values: its bytes and arithmetic; nothing is worked out twice.

What an operation answers to tensors without values depends on their shapes alone, but working it
out takes torch some 100 times as long as making an empty tensor; and blocks of a network are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from fewstep.planning.memory_tracker import MemoryTracker


class OpCache:
    """What operations answered so far, and how much arithmetic they are.

    Attributes:
        answers: Shapes, strides and dtypes of fresh tensors, and arithmetic, by what was asked.
    """

    def __init__(self) -> None:
        self.answers: dict[Any, tuple[Any, int]] = {}


class Walk(MemoryTracker):
    """Context in which a program runs on the meta device.

    Attributes:
        flops: Arithmetic so far of what torch's own counter knows: matrix products, convolutions.
    """

    def __init__(self, known: OpCache | None) -> None:
        """A walk that may use what others found out; None works out everything."""
        super().__init__()
        self.flops = 0
        self._answers = None if known is None else known.answers

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        answers = self._answers
        if answers is None or not _is_pure(func):
            return self._ask(func, args, kwargs)[0]
        key = (func, _key(args), _key(tuple(kwargs.items())) if kwargs else ())
        try:
            found = answers.get(key)
        except TypeError:  # something about it cannot be told apart
            return self._ask(func, args, kwargs)[0]
        if found is not None:
            self.flops += found[1]
            return _made(found[0])
        result, flops = self._ask(func, args, kwargs)
        if _is_fresh(result, (args, kwargs)):
            answers[key] = (tree_map(_like, result), flops)
        return result

    def _ask(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
        self.flops += flops
        return result, flops


class _Like:
    """A tensor's shape, strides and dtype."""

    __slots__ = ("dtype", "shape", "strides")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.strides, self.dtype = tensor.shape, tensor.stride(), tensor.dtype


def _like(value: Any) -> Any:
    return _Like(value) if isinstance(value, Tensor) else value


def _made(like: Any) -> Any:
    if isinstance(like, _Like):
        return torch.empty_strided(like.shape, like.strides, dtype=like.dtype, device="meta")
    if isinstance(like, (tuple, list)):
        return type(like)([_made(each) for each in like])
    return like


_PURE: dict[Any, bool] = {}


def _is_pure(func: Any) -> bool:
    """Whether an operation changes nothing and answers with fresh tensors, as its schema says."""
    pure = _PURE.get(func)
    if pure is None:
        schema = func._schema
        said = (each.alias_info for each in (*schema.arguments, *schema.returns))
        pure = _PURE[func] = not any(said)
    return pure


def _is_fresh(result: Any, asked: Any) -> bool:
    """Whether all that came back is on the meta device and shares no memory with what was given."""
    found = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
    given = {_place(each) for each in tree_leaves(asked) if isinstance(each, Tensor)}
    plain = all(each.is_meta and not each.is_complex() for each in found)
    return plain and bool(found) and not any(_place(each) in given for each in found)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Unknown:
    """What cannot be a key."""

    __hash__ = None  # type: ignore[assignment]


_UNKNOWN = _Unknown()


def _key(value: Any) -> Any:
    """All of an argument that an answer's shape can depend on."""
    if isinstance(value, Tensor):
        if not value.is_meta or value.is_complex():
            return _UNKNOWN
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple([_key(each) for each in value])
    return type(value), value
