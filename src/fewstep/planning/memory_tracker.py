"""Bytes of tensors that are alive, counted while a program runs, on any device including meta.

On the meta device equal operations run once: what an operation returns there depends on shapes,
strides and dtypes alone. Computing that takes torch some 100 times as long as making an empty
tensor, and blocks of a network repeat.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry


class MemoryTracker(TorchDispatchMode):
    """Context that counts every storage from the first operation that touches it to its end.

    Workspace that kernels use internally, and what an allocator keeps in reserve, is not seen.

    Attributes:
        now: Bytes alive.
        peak: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._storages: set[int] = set()

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already; of wrapper subclasses, the tensors inside them."""
        for tensor in tensors:
            for inner in _inner(tensor):
                self._note(inner)

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        self.peak = self.now

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operation and counts the tensors that it returns."""
        result = self.run(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs one operation; for subclasses to replace."""
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):
            return  # it holds nothing: the tensors inside it are seen by themselves
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse, or a wrapper without any
            return
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or size == 0:
            return
        self._storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size


def _inner(tensor: Tensor) -> list[Tensor]:
    """The plain tensors inside a wrapper subclass; the tensor itself if it is plain."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names = tensor.__tensor_flatten__()[0]
    return [inner for name in names for inner in _inner(getattr(tensor, name))]


OpCache = dict[Any, tuple[Any, int]]
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
            return tree_map(_blank, known[0])
        result, flops = self._compute(func, args, kwargs)
        if _is_fresh(result, (args, kwargs)):
            self._cache[key] = (tree_map(_blank, result), flops)
        return result

    def _compute(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, int]:
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
        self.flops += flops
        return result, flops


def _blank(value: Any) -> Any:
    """An empty tensor with the layout of another; any other value as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


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
