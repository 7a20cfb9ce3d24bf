"""One call of a network on the meta device, forward and backward: its arithmetic and its memory.

Nothing is computed: tensors have shapes and no values, so that a network of any size is walked
through in seconds. What is counted is what its own module does: every family, adapter, attention
and checkpoint as it is.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewstep.config import LoraRecipe, Recipe
from fewstep.models.base import Backbone
from fewstep.planning.dummy_conditioning import dummy_conditioning
from fewstep.planning.evaluations import Asked
from fewstep.planning.memory_tracker import on_meta
from fewstep.planning.walk import OpCache, Walk

_LOW = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm,
}  # fmt: skip
"""What autocast does in low precision."""
_HIGH = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax, torch.rsqrt}
"""What autocast does in float32 on CUDA; on a processor it does not."""


@dataclass(frozen=True)
class Trace:
    """What a call of a network takes; bytes beyond those that are there anyway.

    Attributes:
        flops: Multiplications and additions of one forward pass of one sample.
        graph: Bytes kept for a backward pass.
        forward: Most bytes during a forward pass that keeps them.
        backward: Most bytes during its backward pass; see `growing`.
        silent: Most bytes while a teacher, or the student in simulation, answers without a graph.
        growing: Whether `backward` has the gradients in it.
    """

    flops: float
    graph: int
    forward: int
    backward: int
    silent: int
    growing: bool


class _Precision(TorchFunctionMode):
    """Autocast, and an attention that keeps no matrix, for tensors without values.

    Attributes:
        flops: Arithmetic of attention so far, which flop counters do not know.
        backward: Whether calls come from a backward pass, where no mode of this kind is in force.
    """

    def __init__(self, dtype: torch.dtype, *, cuda: bool, texts: int) -> None:
        """Precision of a call.

        Args:
            dtype: What matrix products are done in.
            cuda: Follow CUDA's autocast.
            texts: Tokens of each text: what a network learns that counts a mask of ours.
        """
        super().__init__()
        self._texts = texts
        self.flops = 0
        self.backward = False
        self._low = None if dtype == torch.float32 else dtype
        self._high = _HIGH if cuda else frozenset()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs a function as autocast would."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and _is_mask(args[1]):
            return args[0].view_as(args[0])  # a mask without values: all of it is kept
        if func is torch.Tensor.tolist and on_meta(args[0]):
            return [self._texts] * len(args[0])
        if self._low is not None and (func in _LOW or func in self._high):
            wanted = self._low if func in _LOW else torch.float32
            args = tuple(self._cast(each, wanted) for each in args)
            kwargs = {name: self._cast(each, wanted) for name, each in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        return value.to(dtype)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        if self._low is not None:
            query, key, value = (self._cast(each, self._low) for each in (query, key, value))
        if key.shape[1] != query.shape[1]:  # grouped: heads share keys
            times = query.shape[1] // key.shape[1]
            key, value = (each.repeat_interleave(times, dim=1) for each in (key, value))
        sizes = math.prod(query.shape[:-1]) * key.shape[-2]
        self.flops += 2 * sizes * (query.shape[-1] + value.shape[-1])
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        with torch._C.DisableTorchFunction():
            return flash(query, key, value)[0]

    def again(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that runs in this precision also where a backward pass calls it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self if self.backward else nullcontext():
                return function(*args, **kwargs)

        return run


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and on_meta(index)


def trace(
    recipe: Recipe,
    backbone: Backbone,
    *,
    batch: int,
    asked: Asked,
    growing: bool,
    cuda: bool = True,
    known: OpCache | None = None,
) -> Trace:
    """Walk through one call of a recipe's student, and through its teachers' answers.

    Args:
        recipe: What is trained, how, and in which precision.
        backbone: An outline.
        batch: Samples of the call with a graph.
        asked: How many such batches a teacher and a fake teacher answer at once.
        growing: Count gradients as they come about; else none, as they are there already or go.
        cuda: Follow CUDA's autocast, which does more in float32 than a processor's.
        known: What operations answered before, which makes it faster; None works all of them out.

    Raises:
        FewstepError: The model's configuration does not say what it takes.
    """
    dtype = getattr(torch, recipe.model.dtype)
    net = trained_network(recipe, backbone, dtype)
    low, live = _Precision(dtype, cuda=cuda, texts=backbone.text_tokens), Walk(known)
    live.watch([*net.parameters(), *net.buffers()])
    _watch_recomputing(net, low)
    if not growing:
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)

    def ask(count: int) -> Tensor:
        return _call(recipe, backbone, net, count)

    with low, live, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        start = live.now
        with torch.no_grad():
            ask(batch * asked.fake_teacher)
        flops = (live.flops + low.flops) / (batch * asked.fake_teacher)
        silent = live.peak - start
        live.reset_peak()
        answer = ask(batch)
        graph, forward = live.now - start, live.peak - start
        live.reset_peak()
        loss = answer.square().mean()
        del answer
        low.backward = True
        # Not Tensor.backward, inside which precision would not be watched over.
        torch.autograd.backward(loss)
        backward = live.peak - start
        low.backward = False
    quiet = _Precision(_of_teachers(recipe), cuda=cuda, texts=backbone.text_tokens), Walk(known)
    teacher = _of_teacher(recipe, backbone, net, count=batch * asked.teacher, modes=quiet)
    return Trace(flops, graph, forward, backward, max(silent, teacher), growing)


def _of_teachers(recipe: Recipe) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, recipe.memory.teacher_dtype or recipe.model.dtype)
    return dtype


def _of_teacher(
    recipe: Recipe,
    backbone: Backbone,
    net: nn.Module,
    *,
    count: int,
    modes: tuple[_Precision, Walk],
) -> int:
    """Most bytes while the teacher answers, which has no adapters and may be of lower precision."""
    if recipe.student.mode == "lora":
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in net.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(False)
    else:
        net = copy.deepcopy(backbone.net).to(_of_teachers(recipe)).requires_grad_(False)
    low, live = modes
    live.watch([*net.parameters(), *net.buffers()])
    with low, live, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        start = live.now
        _call(recipe, backbone, net, count)
    return live.peak - start


def _call(recipe: Recipe, backbone: Backbone, net: nn.Module, count: int) -> Tensor:
    """A network's velocity of so many samples."""
    size = recipe.resolution.height, recipe.resolution.width
    xt = torch.empty(count, *backbone.latent_shape(*size), device="meta")
    cond = dummy_conditioning(backbone, count, getattr(torch, recipe.model.dtype))
    return backbone.velocity(net, xt, torch.empty(count, device="meta"), cond)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def trained_network(recipe: Recipe, backbone: Backbone, dtype: torch.dtype) -> nn.Module:
    """A copy of an outline's network as a role that is trained has it."""
    from fewstep.train.memory.activation_checkpointing import checkpoint_activations
    from fewstep.train.memory.adapters import add_adapters
    from fewstep.train.roles import STUDENT

    student, net = recipe.student, copy.deepcopy(backbone.net)
    if student.mode == "lora":
        net = net.to(dtype).requires_grad_(False)
        add_adapters(backbone, net, student.lora or LoraRecipe(), [STUDENT], seed=0)
    else:
        net = net.to(getattr(torch, recipe.memory.trained_dtype or "float32")).requires_grad_(True)
    if student.gradient_checkpointing:
        checkpoint_activations(backbone, net, int(student.gradient_checkpointing))
    return net


def _watch_recomputing(net: nn.Module, low: _Precision) -> None:
    """Let parts that are recomputed run in the precision they had before."""
    for module in net.modules():
        inner: Any = getattr(module, "_gradient_checkpointing_func", None)
        if inner is not None:
            module._gradient_checkpointing_func = partial(_recomputed, inner, low)  # type: ignore[assignment]


def _recomputed(inner: Any, low: _Precision, part: Any, *args: Any) -> Any:
    if isinstance(part, nn.Module) and "forward" not in vars(part):
        part.forward = low.again(part.forward)
    return inner(part, *args)
