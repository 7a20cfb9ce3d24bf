"""A model whose network is split over processes: one reads it, and all take their shards of it.

So a machine holds its weights once while the model is loaded, and not once a process and role.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.config import Recipe
from fewstep.models.base import Backbone
from fewstep.train.distributed import ProcessGroup, shard, split_like
from fewstep.train.memory import kept_base
from fewstep.train.memory.adapters import start_adapter
from fewstep.train.memory.offload import refuse_sharded
from fewstep.train.roles import TRAINED, Roles
from fewstep.utils.errors import FewstepError
from fewstep.utils.pace import Note

Weights = dict[str, Tensor]
"""A network's parameters by name: in the first process as read, in others on the meta device."""


def load_model(
    recipe: Recipe, processes: ProcessGroup, device: torch.device, *, encoders: bool, note: Note
) -> tuple[Backbone, Weights]:
    """The model, on the host; where its network is to be split, without its weights, and those.

    Args:
        recipe: The run's; a base is quantised already, since the whole may not fit the device.
        processes: Those that split it, or do not.
        device: The run's.
        encoders: Whether prompts are still to be encoded.
        note: Told of a quantised base that cannot be kept.

    Raises:
        FewstepError: In all processes, what is wrong for the first one.
    """
    wanted = recipe.model
    load = partial(
        kept_base.load,
        wanted.address,
        recipe.memory.base,
        device=device,
        keep=processes.first,
        note=note,
        dtype=wanted.dtype,
        force=wanted.force,
        encoders=encoders,
        **wanted.options,
    )
    if not processes.sharded:
        return load(), {}
    refuse_sharded(recipe)
    return _load_once(load, processes)


def _load_once(load: Callable[..., Backbone], processes: ProcessGroup) -> tuple[Backbone, Weights]:
    """As the first process reads it; `load`, given a `network`, loads all but that."""
    read: list[Backbone] = []

    def structure() -> nn.Module | FewstepError:
        try:
            read.append(load())
        except FewstepError as error:
            return error
        return _without_weights(read[0].net)

    net = processes.broadcast_from_first(structure)
    if isinstance(net, FewstepError):
        raise net
    backbone = read[0] if read else load(network=net)
    weights = {name: p.detach() for name, p in backbone.net.named_parameters()}
    vars(backbone.pipe)[backbone.net_name] = net
    return backbone, weights


def _without_weights(net: nn.Module) -> nn.Module:
    """A copy with buffers, whose parameters are on the meta device."""
    # What deepcopy finds in its memo it does not copy.
    blanks = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, blanks)


def split_roles(
    recipe: Recipe,
    backbone: Backbone,
    weights: Weights,
    processes: ProcessGroup,
    device: torch.device,
) -> Roles:
    """Roles of which each process has its shards only; takes the weights one by one."""
    seed = recipe.train.seed
    roles = Roles.build(backbone, recipe.student, seed=seed, memory=recipe.memory)
    _fill(shard(roles, backbone, processes, device, recipe), weights, processes, device)
    if recipe.student.mode == "lora":
        for role in TRAINED:
            start_adapter(roles.net(role), role, seed)
    return roles


@torch.no_grad()
def _fill(
    nets: Iterable[nn.Module], weights: Weights, processes: ProcessGroup, device: torch.device
) -> None:
    """Gives sharded networks their shards; adapters get memory, and no values."""
    targets: list[dict[str, Tensor]] = []
    for net in nets:
        buffers = {name: buffer.to(device) for name, buffer in net.named_buffers()}
        net.to_empty(device=device)
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
        named = net.named_parameters()
        # peft wraps a layer that it adapts.
        targets.append({n.replace(".base_layer.", "."): p for n, p in named if ".lora_" not in n})
    for name in list(weights):
        tensor = processes.share(weights.pop(name), device)
        for target in targets:
            target[name].copy_(split_like(tensor, target[name]))
