"""Bytes of tensors that are alive, counted while a program runs, on any device including meta."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


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
