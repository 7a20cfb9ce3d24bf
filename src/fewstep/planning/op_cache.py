"""Running a program on the meta device: its memory and arithmetic; equal operations run once.

What an operation returns on the meta device depends on shapes, strides and dtypes alone. Computing
that takes torch some 100 times as long as making an empty tensor, and blocks of a network repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from fewstep.planning.memory_tracker import MemoryTracker


class OpCache(dict[Any, tuple[Any, int]]):
    """Results of operations and their arithmetic, by operation and arguments.

    Tensors, as arguments and as results, stand for their shape, strides and dtype.
    """


class MetaTracker(MemoryTracker):
    """Context in which a program runs on the meta device.

    Attributes:
        flops: Arithmetic so far, of the operations that torch's own counter knows: matrix products
            and convolutions.
    """

    def __init__(self, op_cache: OpCache | None) -> None:
        """A tracker that looks results up and stores them; None runs every operation."""
        super().__init__()
        self.flops = 0
        self._cache = op_cache

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation, or makes empty tensors like those it is known to return."""
        if self._cache is None or not _is_functional(func):
            return self._compute(func, args, kwargs)[0]
        try:
            key = func, _key(args), _key(tuple(kwargs.items()))
            known = self._cache.get(key)
        except TypeError:  # an argument that cannot be part of a key
            return self._compute(func, args, kwargs)[0]
        if known is not None:
            self.flops += known[1]
            return _empty(known[0])
        result, flops = self._compute(func, args, kwargs)
        if _is_fresh(result, (args, kwargs)):
            self._cache[key] = (tree_map(_layout, result), flops)
        return result

    def _compute(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, int]:
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
        self.flops += flops
        return result, flops


class _Layout:
    """A tensor's shape, strides and dtype; not a tuple, which may be an operation's result."""

    __slots__ = ("dtype", "shape", "strides")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.strides, self.dtype = tensor.shape, tensor.stride(), tensor.dtype


def _layout(value: Any) -> Any:
    return _Layout(value) if isinstance(value, Tensor) else value


def _empty(layout: Any) -> Any:
    if isinstance(layout, _Layout):
        return torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device="meta")
    if isinstance(layout, (tuple, list)):
        return type(layout)([_empty(item) for item in layout])
    return layout


@cache
def _is_functional(func: Any) -> bool:
    """Whether an operation changes nothing and returns new tensors, as its schema says."""
    schema = func._schema
    return not any(value.alias_info for value in (*schema.arguments, *schema.returns))


def _is_fresh(result: Any, arguments: Any) -> bool:
    """Whether all that was returned is on the meta device and shares no memory with arguments."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    given = {_storage(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
    plain = all(tensor.is_meta and not tensor.is_complex() for tensor in tensors)
    return plain and bool(tensors) and not any(_storage(tensor) in given for tensor in tensors)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _key(value: Any) -> Any:
    """All of an argument that a result's layout can depend on.

    Raises:
        TypeError: A tensor with values, on which everything can depend.
    """
    if isinstance(value, Tensor):
        if not value.is_meta or value.is_complex():
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple([_key(item) for item in value])
    return type(value), value
