"""Bytes of tensors that are alive, counted while a program runs: also of tensors without values."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):
    """Context that counts every storage from the first operation that touches it to its end.

    What kernels use inside themselves, and what an allocator keeps in reserve, is not seen.

    Attributes:
        now: Bytes alive.
        peak: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that are there already; of those that wrap others, the others."""
        for tensor in tensors:
            for each in _inner(tensor):
                self._note(each)

    def reset_peak(self) -> None:
        """Forget the fullest moment so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operation and looks at its tensors."""
        result = self._answer(func, args, kwargs or {})
        if isinstance(result, Tensor):
            self._note(result)
        elif result is not None:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._note(leaf)
        return result

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):
            return  # it holds nothing: the tensors inside it are seen by themselves
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse, or a wrapper without any
            return
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _inner(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold what one that wraps others stands for; the tensor itself if plain."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names = tensor.__tensor_flatten__()[0]
    return [each for name in names for each in _inner(getattr(tensor, name))]


def on_meta(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values."""
    return tensor.device == torch.device("meta")
