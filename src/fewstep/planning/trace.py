"""One call of a network on the meta device, forward and backward: its arithmetic and its memory.

Nothing is computed: tensors have shapes and no values, so that a network of any size is run in
seconds. What is counted is what the network of a run would do, with its adapters, attention and
gradient checkpointing.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewstep.config import Recipe
from fewstep.models.base import Backbone
from fewstep.models.dummy_conditioning import dummy_conditioning
from fewstep.planning.memory_tracker import MetaTracker, OpCache
from fewstep.train.memory.low_copy import cast
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER, Roles

_LOW = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm,
}  # fmt: skip
"""What autocast does in low precision."""
_HIGH = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax, torch.rsqrt}
"""What autocast does in float32 on CUDA; on a processor it does not."""


@dataclass(frozen=True)
class Trace:
    """What one call of a network takes; bytes are on top of the weights.

    Attributes:
        flops: Multiplications and additions of one forward pass of one sample.
        graph: Bytes kept for a backward pass.
        forward: Most bytes during a forward pass that keeps them.
        backward: Most bytes during its backward pass.
        no_grad: Most bytes during a call without a graph, such as a teacher's.
        walk: The same, of the student in the backward simulation, when there are no gradients.
        with_gradients: Whether `backward` includes the gradients.
    """

    flops: float
    graph: int
    forward: int
    backward: int
    no_grad: int
    walk: int
    with_gradients: bool


@dataclass(eq=False)
class MetaNetworks:
    """The networks of a run on the meta device, built when they are first needed.

    Attributes:
        recipe: What is trained, how, and in which precision.
        backbone: Its model, on the meta device; it is left as it is.
        cuda: Follow CUDA's autocast, which does more in float32 than a processor's.
        op_cache: Results of earlier traces, which make it faster; None runs every operation.
    """

    recipe: Recipe
    backbone: Backbone
    cuda: bool = True
    op_cache: OpCache | None = None

    @cached_property
    def roles(self) -> Roles:
        """Student, teacher and fake teacher as training builds them, of a copied network."""
        recipe, backbone = self.recipe, copy.copy(self.backbone)
        backbone.pipe = copy.copy(backbone.pipe)
        net = cast(copy.deepcopy(backbone.net), getattr(torch, recipe.model.dtype))
        setattr(backbone.pipe, backbone.net_name, net)
        student = recipe.student.model_copy(update={"compile": False})
        return Roles.build(backbone, student, seed=0, memory=recipe.memory)

    @contextmanager
    def metered(self, role: str) -> Iterator[tuple[MetaTracker, _Autocast]]:
        """Context in which memory and arithmetic of a role are counted, its weights included."""
        net, tracker = self.roles.net(role), MetaTracker(self.op_cache)
        autocast = _Autocast(tracker, cuda=self.cuda)
        tracker.watch([*net.parameters(), *net.buffers()])
        for module in net.modules():
            name = "_gradient_checkpointing_func"
            if checkpoint := getattr(module, name, None):
                setattr(module, name, partial(autocast.recomputed, checkpoint))
        with self.roles.active(role), tracker, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            self._autocast = autocast
            yield tracker, autocast

    def velocity(self, role: str, samples: int) -> Tensor:
        """A network's velocity of so many samples; to be called in `metered`."""
        net, self._autocast.low = self.roles.answering(role)
        size = self.recipe.resolution.largest
        xt = torch.empty(samples, *self.backbone.latent_shape(*size), device="meta")
        dtype = getattr(torch, self.recipe.model.dtype)
        cond = dummy_conditioning(self.backbone, samples, dtype)
        sigma = torch.empty(samples, device="meta")
        with self._autocast:
            return self.backbone.velocity(net, xt, sigma, cond)


def trace(
    networks: MetaNetworks,
    *,
    batch: int,
    largest: Mapping[str, int],
    simulated: int = 0,
    with_gradients: bool,
) -> Trace:
    """Call a recipe's student, forward and backward, and both its teachers.

    Args:
        networks: The recipe's, fresh.
        batch: Samples of the call with a graph.
        largest: How many times as many samples the largest call of a teacher has, by its name.
        simulated: Samples that are simulated together.
        with_gradients: Count gradients from when they arise; else they are not counted.

    Raises:
        FewstepError: The model's configuration does not say what its network takes.
    """
    samples = batch * largest.get(FAKE_TEACHER, 1)
    with networks.metered(STUDENT) as (tracker, autocast):
        if not with_gradients:
            for parameter in networks.roles.parameters(STUDENT).values():
                parameter.register_post_accumulate_grad_hook(_drop)
        weights = tracker.now
        with torch.no_grad():
            networks.velocity(STUDENT, max(simulated, batch))
            flops = tracker.flops / max(simulated, batch)
            walk = tracker.peak - weights
            networks.roles.release_copies()
            tracker.reset_peak()
            held = next(iter(networks.roles.parameters(STUDENT).values()))
            if not with_gradients:  # those of an earlier part, which change what answers
                held.grad = torch.empty_like(held)
            networks.velocity(STUDENT, samples)  # as the fake teacher, of the same structure
            no_grad, held.grad = tracker.peak - weights, None
        networks.roles.release_copies()
        tracker.reset_peak()
        velocity = networks.velocity(STUDENT, batch)
        graph, forward = tracker.now - weights, tracker.peak - weights
        tracker.reset_peak()
        loss = velocity.square().mean()
        del velocity
        autocast.in_backward = True
        # Not Tensor.backward, which runs its recomputation without function modes.
        torch.autograd.backward(loss)
        autocast.in_backward = False
        backward = tracker.peak - weights
    # The teacher is traced by itself: it has no adapters and may be of lower precision.
    with networks.metered(TEACHER) as (tracker, _), torch.no_grad():
        weights = tracker.now
        networks.velocity(TEACHER, batch * largest.get(TEACHER, 1))
        no_grad = max(no_grad, tracker.peak - weights)
    return Trace(flops, graph, forward, backward, no_grad, walk, with_gradients)


def at_work(part: nn.Module, call: Callable[[], object], op_cache: OpCache, *, cuda: bool) -> int:
    """Most bytes beyond its weights while a part of a pipeline is called, without a graph.

    Args:
        part: The part, on the meta device.
        call: Calls it, on the meta device.
        op_cache: Results of earlier traces.
        cuda: See `MetaNetworks`.
    """
    tracker = MetaTracker(op_cache)
    tracker.watch([*part.parameters(), *part.buffers()])
    with torch.no_grad(), _Autocast(tracker, cuda=cuda), tracker:
        weights = tracker.now
        call()
    return tracker.peak - weights


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class _Autocast(TorchFunctionMode):
    """Autocast, and attention that keeps no matrix, for the meta device, which has neither.

    Attributes:
        low: Precision that products are done in; None: that of what is given.
        in_backward: Whether a backward pass is running, in which this mode is not in force.
    """

    def __init__(self, tracker: MetaTracker, *, cuda: bool) -> None:
        """Follows CUDA's autocast, or else a processor's."""
        super().__init__()
        self.low: torch.dtype | None = None
        self.in_backward = False
        self._tracker = tracker
        self._high = _HIGH if cuda else frozenset()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs a function as autocast would."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self.low is not None and (func in _LOW or func in self._high):
            dtype = self.low if func in _LOW else torch.float32
            args = tuple(_to(value, dtype) for value in args)
            kwargs = {name: _to(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        if self.low is not None:
            query, key, value = (_to(tensor, self.low) for tensor in (query, key, value))
        if key.shape[1] != query.shape[1]:  # grouped: heads share keys
            times = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(times, dim=1) for tensor in (key, value))
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        self._tracker.flops += 2 * scores * (query.shape[-1] + value.shape[-1])
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        with torch._C.DisableTorchFunction():
            output: Tensor = flash(query, key, value)[0]
        return output

    def recomputed(self, checkpoint: Any, part: Any, *args: Any) -> Any:
        """Lets a part that a backward pass recomputes run in this mode there as well."""
        if isinstance(part, nn.Module) and "forward" not in vars(part):
            forward = part.forward

            def run(*args: Any, **kwargs: Any) -> Any:
                with self if self.in_backward else nullcontext():
                    return forward(*args, **kwargs)

            part.forward = run
        return checkpoint(part, *args)


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
