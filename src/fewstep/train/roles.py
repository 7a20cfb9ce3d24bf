"""Student, teacher and fake teacher as velocity fields of one backbone, and further networks.

``full``: three networks. ``lora``: one network with two adapters; the teacher is the network with
its adapters off, so that the weights exist once. A network is changed in a stated order: adapters,
checkpointing, compile; sharding, if any, comes after that, from outside.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config import LoraRecipe, OptimizerRecipe, StudentRecipe
from fewstep.config.memory import MemoryRecipe
from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.objectives import Objective
from fewstep.train.determinism import forward_only
from fewstep.train.memory.activation_checkpointing import checkpoint_activations
from fewstep.train.memory.adapters import adapter_layers, adapter_parameters, add_adapters
from fewstep.train.memory.low_copy import LowCopy, cast
from fewstep.train.memory.split import Split
from fewstep.utils.errors import FewstepError

STUDENT, TEACHER, FAKE_TEACHER = "student", "teacher", "fake_teacher"
TRAINED = (STUDENT, FAKE_TEACHER)
_AS_LOADED = MemoryRecipe()
_VARIANTS = 64  # of a compiled block, before it would silently run uncompiled


class Roles(ABC):
    """The networks: ``roles.student(xt, sigma, cond) -> velocity``, and likewise the others.

    Attributes:
        evaluations: Network evaluations so far, in samples.
        modules: Networks that objectives bring along, by name.
        split: How networks are split over processes, if they are.
    """

    split: Split | None = None

    def __init__(self, backbone: Backbone) -> None:
        """Roles of a backbone; its network's precision is the one that all compute in."""
        self.backbone = backbone
        self.evaluations = 0
        self.modules: dict[str, nn.Module] = {}
        self._owners: dict[str, str] = {}
        self._dtype = next(backbone.net.parameters()).dtype
        self._autocast: dict[str, torch.dtype] = {}
        self._low_copies: dict[str, LowCopy] = {}

    @staticmethod
    def build(
        backbone: Backbone,
        recipe: StudentRecipe,
        *,
        seed: int,
        memory: MemoryRecipe = _AS_LOADED,
    ) -> Roles:
        """The networks of a fresh run; the backbone's own network is one of them."""
        if recipe.mode == "lora":
            return _Lora(backbone, recipe, seed)
        return _Full(backbone, recipe, memory)

    def student(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity of the network that is distilled: [B, ...] -> [B, ...]."""
        return self.velocity(STUDENT, xt, sigma, cond)

    @torch.no_grad()
    def teacher(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity of the pretrained network, without a graph: [B, ...] -> [B, ...]."""
        return self.velocity(TEACHER, xt, sigma, cond)

    def fake_teacher(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity of the model of what the student generates: [B, ...] -> [B, ...]."""
        return self.velocity(FAKE_TEACHER, xt, sigma, cond)

    def velocity(self, network: str, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity of a role's network, with a graph where gradients are enabled: [B, ...]."""
        self.evaluations += len(xt)
        net, dtype = self.answering(network)
        # A call uses each weight once: keeping all low copies to its end would save no time.
        autocast = torch.autocast(
            xt.device.type, dtype, enabled=dtype is not None, cache_enabled=False
        )
        scope = nullcontext() if torch.is_grad_enabled() else forward_only()
        with self.active(network), autocast, scope:
            return self.backbone.velocity(net, xt, sigma, cond)

    def answering(self, network: str) -> tuple[nn.Module, torch.dtype | None]:
        """What answers a call of a role now, and the precision of its autocast; None: without.

        Float32 masters need autocast to compute in low precision. Where gradients are disabled, a
        copy of them stands in and needs none; not while gradients of an earlier part of the batch
        are held, which have its room.
        """
        net = self.net(network)
        if network in self._low_copies and not torch.is_grad_enabled():
            if self.split:  # gathered in low precision
                return net, None
            if not self._holds_gradients():
                return self._low_copies[network].of(net), None
        return net, self._autocast.get(network)

    def _holds_gradients(self) -> bool:
        parameters = (p for role in TRAINED for p in self.net(role).parameters())
        return any(parameter.grad is not None for parameter in parameters)

    def release_copies(self) -> None:
        """Give back the memory of what `answering` has copied."""
        for low in self._low_copies.values():
            low.release()

    def gathered(self, role: str) -> AbstractContextManager[None]:
        """Context in which the weights of a role's network do not change; see `Split.gathered`."""
        return self.split.gathered(self.net(role)) if self.split else nullcontext()

    @contextmanager
    def capture(self, network: str, blocks: Sequence[int]) -> Iterator[list[tuple[Tensor, ...]]]:
        """Context that collects the tensors that some blocks of a role's network return in a call.

        Raises:
            FewstepError: The network has no block of such a number.
        """
        net: Any = self.net(network)
        there = self.backbone.blocks(net)
        if not set(blocks) <= set(range(len(there))):
            what = f"blocks {list(blocks)}: the network has blocks 0 to {len(there) - 1}"
            raise FewstepError(what, code="out-of-range")
        outputs: dict[int, tuple[Tensor, ...]] = {}
        collected: list[tuple[Tensor, ...]] = []

        def keep(number: int, module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            outputs[number] = tuple(each for each in tensors if isinstance(each, Tensor))

        def tie(module: nn.Module, inputs: Any, output: Any) -> None:
            zero = 0 * (output[0] if isinstance(output, tuple) else output).sum()
            for number, tensors in outputs.items():
                outputs[number] = tuple(each + zero for each in tensors)

        hooks = [there[n].register_forward_hook(partial(keep, n)) for n in blocks]
        if hasattr(net, "reshard") and torch.is_grad_enabled():
            # FSDP2 gathers the parameters outside the blocks when the backward pass reaches the
            # network's output; a loss of features alone would never get there.
            hooks.append(net.register_forward_hook(tie))
        try:
            yield collected
        finally:
            for hook in hooks:
                hook.remove()
        collected += [outputs[number] for number in blocks]

    @abstractmethod
    def net(self, role: str) -> nn.Module:
        """The denoiser of a role; with shared weights, right only inside `active`."""

    @abstractmethod
    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """What is trained of a network; names are equal for student and fake teacher."""

    @abstractmethod
    def active(self, role: str) -> AbstractContextManager[None]:
        """Context in which the weights of a role are in force."""

    # ------------------------------------------------------- networks that objectives bring along

    def add_networks(
        self, objectives: Sequence[Objective], seed: int
    ) -> dict[str, OptimizerRecipe]:
        """Take over the networks that objectives train beside the student.

        Args:
            objectives: The recipe's list.
            seed: Their initial weights are a function of it.

        Returns:
            Settings of their optimizers, by the networks' names.

        Raises:
            FewstepError: A name is taken.
        """
        optimizers: dict[str, OptimizerRecipe] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            brought = [(each.name, each.networks(self.backbone)) for each in objectives]
        for owner, networks in brought:
            for name, network in networks.items():
                if name in (*self.trained, TEACHER, "ema", "optimizers"):
                    raise FewstepError(
                        f"objective {owner!r}: its network cannot be called {name!r}; it is taken",
                        code="exists",
                    )
                device = self.backbone.device
                self.modules[name] = network.module.to(device).requires_grad_(True)
                self._owners[name] = owner
                optimizers[name] = network.optimizer
        return optimizers

    def networks_of(self, owner: str) -> list[str]:
        """Names of the networks that an objective brought along."""
        return [name for name, objective in self._owners.items() if objective == owner]

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of all networks that are trained."""
        return (*TRAINED, *self.modules)

    def state(self, name: str) -> dict[str, Tensor]:
        """All that a checkpoint holds of a trained network: live tensors, by name."""
        if name in self.modules:
            return dict(self.modules[name].state_dict())
        return dict(self.parameters(name))

    def backward(self, name: str, loss: Tensor, *, last: bool = True) -> None:
        """Backward pass into a trained network, with its weights in force.

        `last`: the network is updated before its next one.
        """
        self.release_copies()  # gradients take their room
        if self.split:
            self.split.before_backward(self.modules.get(name) or self.net(name), last=last)
        with nullcontext() if name in self.modules else self.active(name):
            loss.backward()

    def discard_gradients(self, *, keep: str) -> None:
        """Drop gradients that a backward pass has left in other trained networks than `keep`."""
        for name in self.trained:
            if name != keep:
                for parameter in self.parameters(name).values():
                    parameter.grad = None


class _Full(Roles):
    """Three networks; the teacher is the backbone's own."""

    def __init__(self, backbone: Backbone, recipe: StudentRecipe, memory: MemoryRecipe) -> None:
        super().__init__(backbone)
        teacher = backbone.net.requires_grad_(False).eval()
        self._nets = {TEACHER: teacher}
        trained = getattr(torch, memory.trained_dtype or "float32")
        for role in TRAINED:
            net = cast(copy.deepcopy(teacher), trained).requires_grad_(True)
            if recipe.gradient_checkpointing:
                checkpoint_activations(backbone, net, int(recipe.gradient_checkpointing))
            self._nets[role] = net
        if self._dtype != torch.float32 == trained:
            self._autocast = dict.fromkeys(TRAINED, self._dtype)
            self._low_copies = {role: LowCopy(teacher) for role in TRAINED}
        if memory.teacher_dtype is not None:
            dtype = getattr(torch, memory.teacher_dtype)
            cast(teacher, dtype)
            if dtype not in (self._dtype, torch.float32):  # prompts are encoded in the former
                self._autocast[TEACHER] = dtype
        if recipe.compile:
            copies = (low.net for low in self._low_copies.values())
            for net in (*self._nets.values(), *copies):
                _compile_blocks(backbone, net)

    def net(self, role: str) -> nn.Module:
        return self._nets[role]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        return dict((self.modules | self._nets)[name].named_parameters())

    def active(self, role: str) -> AbstractContextManager[None]:
        return nullcontext()


class _Lora(Roles):
    """One frozen network with two adapters that start from the same weights."""

    def __init__(self, backbone: Backbone, recipe: StudentRecipe, seed: int) -> None:
        super().__init__(backbone)
        self._net = backbone.net.requires_grad_(False).eval()
        add_adapters(backbone, self._net, recipe.lora or LoraRecipe(), TRAINED, seed=seed)
        self._layers: list[Any] = adapter_layers(self._net)
        for name in TRAINED:
            for parameter in self.parameters(name).values():
                parameter.requires_grad_(True)
        self._active, self._depth = "", 0
        self._switch(TEACHER)
        if recipe.gradient_checkpointing:
            checkpoint_activations(
                backbone,
                self._net,
                int(recipe.gradient_checkpointing),
                recompute_in=lambda: self.active(self._active),
            )
        if recipe.compile:
            _compile_blocks(backbone, self._net)

    def net(self, role: str) -> nn.Module:
        return self._net

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        if name in self.modules:
            return dict(self.modules[name].named_parameters())
        return adapter_parameters(self._net, name)

    @contextmanager
    def active(self, role: str) -> Iterator[None]:
        before = self._active
        self._switch(role)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth:  # else the next call says which role it wants, often the same
                self._switch(before)

    def _switch(self, role: str) -> None:
        """Put one adapter in force, or none for the teacher.

        By attribute: peft's own methods also turn the gradients of every adapter on or off, one
        tensor at a time. Only parameters in force are part of a graph.
        """
        if role == self._active:
            return
        for layer in self._layers:
            layer._disable_adapters = role == TEACHER
            layer._active_adapter = [role]
        self._active = role


# ------------------------------------------------------------------------------- students at rest


def become_student(
    backbone: Backbone, recipe: StudentRecipe, state: Mapping[str, Tensor]
) -> nn.Module:
    """Turn a backbone's own network, in place, into a saved student; no copy is made.

    In mode ``lora`` it is the pretrained network with one adapter, named ``student``, in force.

    Args:
        backbone: The model that was distilled, freshly loaded.
        recipe: The run's `student` section.
        state: Weights by name, see `checkpoint.student_weights`.

    Raises:
        FewstepError: The weights belong to another model or recipe.
    """
    net = backbone.net
    if recipe.mode == "lora":
        add_adapters(backbone, net, recipe.lora or LoraRecipe(), [STUDENT], seed=0)
        parameters = adapter_parameters(net, STUDENT)
    else:
        parameters = dict(net.named_parameters())
    load_parameters(parameters, state)
    return net.requires_grad_(False).eval()


@torch.no_grad()
def load_parameters(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy weights by name, in place.

    Raises:
        FewstepError: The names or shapes differ.
    """
    if parameters.keys() != state.keys():
        odd = sorted(parameters.keys() ^ state.keys())
        raise FewstepError(
            f"weights of another model: {odd[0]!r} and {len(odd) - 1} more differ", code="mismatch"
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise FewstepError(
                f"weights of another model: {name!r} has another shape", code="mismatch"
            )
        parameter.copy_(state[name])


def _compile_blocks(backbone: Backbone, net: nn.Module) -> None:
    """Compile a network's repeated blocks, in place: one compilation serves all that are alike.

    Blocks are few, graphs are short, and names of parameters stay. Batches shrink on the way to the
    anchors, so sizes are dynamic; adapters, gradients and batches of one each want a variant.
    """
    limit = "recompile_limit"
    if hasattr(torch._dynamo.config, limit):
        setattr(torch._dynamo.config, limit, max(_VARIANTS, torch._dynamo.config.recompile_limit))
    for block in backbone.blocks(net):
        block.compile(dynamic=True)
