"""Training with several processes: each takes its part of every batch; their state is the same.

This is the only file that imports torch.distributed. torchrun starts the processes, FSDP2's
`fully_shard` shards networks, gradients and optimizers, `all_reduce` averages what is not sharded,
and torch.distributed.checkpoint writes the shards as safetensors. Random values are functions of a
sample's index in the global batch, so that nothing else has to be communicated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.config import ConfigError, Recipe
from fewstep.config.data import DataRecipe
from fewstep.config.parallel import ParallelRecipe
from fewstep.models.base import Backbone
from fewstep.train.memory.low_copy import keeps_float32
from fewstep.train.memory.split import Split
from fewstep.train.optim import Updater
from fewstep.train.roles import STUDENT, TEACHER, TRAINED, Roles
from fewstep.utils import hardware, ranks
from fewstep.utils.errors import FewstepError

T = TypeVar("T")

_BUCKET = 64 * 2**20  # elements that are averaged in one call
_LOST = ("gloo", "NCCL", "nccl", "Connection closed", "Connection reset", "Broken pipe")


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """The processes of a run, as one of them sees them; the default is a single process.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        mesh: Devices that the networks are sharded over; None: every process holds them whole.
        control_group: Group for small messages between two network calls.
        io_group: Group for the thread that saves. Every process must send the messages of a group
            in the same order, which the threads of training and saving do not keep together.
    """

    rank: int = 0
    size: int = 1
    mesh: Any = None
    control_group: Any = None
    io_group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether networks are sharded: all processes must make the same network calls."""
        return self.mesh is not None

    def device(self, device: torch.device) -> torch.device:
        """This process's own accelerator, given a device without a number such as ``cuda``."""
        if self.size == 1 or device.type == "cpu" or device.index is not None:
            return device
        return torch.device(device.type, ranks.local_rank())

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over the processes; a single process gets the values back."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by their means over the processes, in place; skips sharded ones."""
        whole = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
        for bucket in _buckets(whole) if self.size > 1 else ():
            flat = self.mean(torch.cat([tensor.flatten() for tensor in bucket]))
            means = flat.split([tensor.numel() for tensor in bucket])
            for tensor, mean in zip(bucket, means, strict=True):
                tensor.copy_(mean.view_as(tensor))

    def broadcast_from_first(self, compute: Callable[[], T]) -> T:
        """Result of a function that only the first process calls, for all of them."""
        if self.size == 1:
            return compute()
        result = [compute() if self.first else None]
        dist.broadcast_object_list(result, src=0, group=self.control_group)
        return result[0]  # type: ignore[return-value]

    def share(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The first process's tensor on the device of each; others give one of its shape."""
        shared = torch.empty_like(tensor, device=device, memory_format=torch.contiguous_format)
        if self.first:
            shared.copy_(tensor)
        dist.broadcast(shared, 0)
        return shared

    def wait(self) -> None:
        """Waits until every process has called this."""
        if self.size > 1:
            dist.barrier(group=self.control_group)

    def exchange(self, value: T) -> list[T]:
        """The values of all processes, in order; for the thread that trains."""
        return [value] if self.size == 1 else self._gathered(value, self.control_group)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order; for the thread that saves."""
        return self._gathered(value, self.io_group)

    def _gathered(self, value: T, group: Any) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group)
        return values


SINGLE = ProcessGroup()


@contextmanager
def init_distributed(
    recipe: ParallelRecipe, data: DataRecipe, device: str
) -> Iterator[ProcessGroup]:
    """Context in which this process belongs to its job, as torchrun's environment describes it.

    Args:
        recipe: Whether networks are sharded, and how.
        data: The batch that is divided among the processes.
        device: The recipe's device.

    Yields:
        The processes; `SINGLE` where nothing launched several.

    Raises:
        ConfigError: The recipe does not fit the number of processes.
    """
    size = ranks.processes()
    if size == 1:
        if recipe.shard == "hybrid":
            raise ConfigError("parallel.shard: 'hybrid' needs several processes; see torchrun")
        yield SINGLE
        return
    _check(recipe, data, size)
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(ranks.local_rank())
    limit = timedelta(seconds=recipe.timeout)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=limit)
    mesh = _mesh(recipe, size, "cuda" if cuda else "cpu")
    control_group, io_group = (dist.new_group(backend="gloo", timeout=limit) for _ in range(2))
    processes = ProcessGroup(dist.get_rank(), size, mesh, control_group, io_group)
    try:
        yield processes
    except SystemExit:  # all were asked to stop, and have saved
        _leave(processes)
        raise
    _leave(processes)  # not after an error: others may be gone, and torchrun ends the rest


def _leave(processes: ProcessGroup) -> None:
    processes.wait()
    dist.destroy_process_group()


def _check(recipe: ParallelRecipe, data: DataRecipe, size: int) -> None:
    if data.batch_size % size:
        raise ConfigError(
            f"data.batch_size: {data.batch_size} samples cannot be shared evenly by {size} "
            f"processes; take a multiple of {size}"
        )
    if recipe.shard == "hybrid" and (size % recipe.replicate or size == recipe.replicate):
        raise ConfigError(
            f"parallel.replicate: {size} processes cannot be {recipe.replicate} copies of several; "
            f"take a proper divisor of {size}"
        )


def _mesh(recipe: ParallelRecipe, size: int, device: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if recipe.shard == "none":
        return None
    if recipe.shard == "full":
        return init_device_mesh(device, (size,), mesh_dim_names=("shard",))
    shape = (recipe.replicate, size // recipe.replicate)
    return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, up to a bucket's size."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(held.numel() for held in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def is_connection_lost(error: BaseException) -> bool:
    """Whether an error means that another process has ended, rather than a fault of this one."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(sign in text for sign in _LOST)


# -------------------------------------------------------------------------------------- training


class SharedUpdater(Updater):
    """An optimizer whose update all processes make, with the mean gradient, or none of them."""

    processes: ProcessGroup = SINGLE

    def update(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """As `Updater.update`, with the gradients and losses of the global batch."""
        gradients = (p.grad for p in self._parameters.values() if p.grad is not None)
        self.processes.average(gradients)
        means = self.processes.mean(torch.stack([*losses.values()]))
        return super().update(dict(zip(losses, means, strict=True)), step)


def shard(
    roles: Roles,
    backbone: Backbone,
    processes: ProcessGroup,
    device: torch.device,
    recipe: Recipe,
) -> list[nn.Module]:
    """Shards the roles' networks over the processes, in place: blocks, then the rest; returns them.

    Gradient checkpointing must be on already. Weights travel in the precision that the network
    computes in, gradients in float32. They are gathered for one call only (those of the root too,
    which FSDP2 would keep), but see `Split`. In LoRA mode every process holds the adapters
    whole: they are small, and which of them takes gradients changes from call to call.
    """
    nets = {id(roles.net(role)): role for role in (*TRAINED, TEACHER)}
    whole: set[nn.Parameter] = set()
    if len(nets) == 1:
        whole = {p for role in TRAINED for p in roles.parameters(role).values()}
    options = {"mesh": processes.mesh, "reshard_after_forward": True, "ignored_params": whole}
    for role in nets.values():
        net = roles.net(role)
        # Masters travel as they compute in a graph, frozen weights as they are.
        low = roles.answering(role)[1] if role in TRAINED else None
        kept = {id(p) for name, p in net.named_parameters() if keeps_float32(net, name)}
        for block in backbone.blocks(net):
            _shard_unit(block, kept, low or torch.float32, options)
        _shard_unit(net, kept, low or torch.float32, options)
    # By the smallest device, so that all processes decide alike.
    roles.split = Split.of(
        recipe,
        network=sum(p.numel() for p in set(roles.net(TEACHER).parameters()) - whole),
        trained=sum(p.numel() for p in roles.parameters(STUDENT).values()),
        shards=processes.mesh["shard"].size(),
        room=min(processes.exchange(hardware.room(device))),
    )
    return [roles.net(role) for role in nets.values()]


def shard_modules(roles: Roles, processes: ProcessGroup) -> None:
    """Shards the networks that objectives bring along."""
    from torch.distributed.fsdp import fully_shard

    for module in roles.modules.values():
        fully_shard(module, mesh=processes.mesh)


def _shard_unit(
    module: nn.Module, kept: set[int], low: torch.dtype, options: dict[str, Any]
) -> None:
    """Shards a module, apart from submodules that are sharded already.

    All that is gathered together has one precision: where some parameters have to stay float32
    (`kept`, by id), submodules without any are sharded on their own.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mixed = low != torch.float32 and not kept.isdisjoint(map(id, module.parameters()))
    called = not isinstance(module, nn.ModuleList | nn.ModuleDict)
    if mixed or not called:
        for child in module.children():
            done = any(isinstance(each, FSDPModule) for each in child.modules())
            if not done and {id(p) for p in child.parameters()} - kept:
                _shard_unit(child, kept, low, options)
    if called:
        # Inputs stay as they are: autocast casts them where an operation wants it, and noise
        # levels must not lose digits.
        policy = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
        exact = mixed or low == torch.float32
        fully_shard(module, **options, mp_policy=MixedPrecisionPolicy() if exact else policy)


# ----------------------------------------------------------------------------------- checkpoints

Like = Callable[[str], Tensor | None]
"""``like(key)``: a tensor sharded as the one of that key is to be; None: it is read whole."""


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], processes: ProcessGroup
) -> Future[Any]:
    """Starts to write tensors as safetensors, each process its own shards.

    The values are those at the time of the call; the writing itself goes on in a thread.

    Returns:
        A future that is done when this process's shards are written.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    state = {name: tensor.detach() for name, tensor in tensors.items()}
    saved: Any = async_save(state, storage_writer=writer, process_group=processes.io_group)
    return saved


def finish_shards(written: Future[Any]) -> None:
    """Waits until this process's shards are written.

    Raises:
        OSError: Some process could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        written.result()
    except CheckpointException as error:  # the failures of all processes, by rank
        first = next(iter(error.failures.values()))[0]
        raise first from error


def shards_of(folder: Path, rank: int) -> list[Path]:
    """The files of a folder that the process of a rank wrote."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def read_shards(folder: Path, like: Like | None = None, prefix: str = "") -> dict[str, Tensor]:
    """Tensors that any number of processes wrote, whole or sharded anew.

    Nothing is communicated: each process reads its own shards.

    Args:
        folder: Where they are.
        like: How each tensor is to be sharded; None reads all of them whole.
        prefix: Only keys that begin with it are read.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata: Mapping[str, Any] = (
        HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    )
    tensors: dict[str, Tensor] = {}
    for key, stored in metadata.items():
        if key.startswith(prefix):
            model = like(key) if like else None
            if isinstance(model, DTensor):
                tensors[key] = torch.zeros_like(model, dtype=stored.properties.dtype)
            else:
                tensors[key] = torch.zeros(stored.size, dtype=stored.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors


def split_like(tensor: Tensor, model: Tensor | None) -> Tensor:
    """A whole tensor, sharded like another; nothing is communicated."""
    if not isinstance(model, DTensor):
        return tensor
    moved = tensor.to(model.device)
    return distribute_tensor(moved, model.device_mesh, model.placements, src_data_rank=None)


def connection_lost(error: BaseException, last: str) -> FewstepError:
    """The error for users when another process has ended."""
    first = str(error).strip().splitlines()[0]
    return FewstepError(
        f"another process of the job is gone ({first}); {last}; use --resume", code="process-lost"
    )
