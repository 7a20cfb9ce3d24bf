"""Where values that are not finite come from: asked once a loss or a gradient has some, not before.

The first of these that is not finite is named, in the order in which one would spoil the next: the
encoded prompts, the teacher, the student, the fake teacher, networks that objectives bring along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.types import Conditioning
from fewstep.train.distributed import ProcessGroup
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER, Roles

_SIGMAS = (0.9, 0.5, 0.1)
_SHOWN = 60  # characters of a prompt
_CURES = {
    TEACHER: "is model.dtype (memory.teacher_dtype) too narrow for it? Try bfloat16 or float32",
    STUDENT: "training has diverged: lower the learning rates or the guidance",
    FAKE_TEACHER: "it has diverged: lower fake_teacher.optimizer.lr",
}


def cause_of_non_finite(
    roles: Roles,
    processes: ProcessGroup,
    *,
    cond: Conditioning,
    null: Conditioning,
    noise: Tensor,
    prompts: Sequence[str],
) -> str | None:
    """What is not finite, and what to do; None where all this is finite.

    All processes must call it together, and all get the same answer.

    Args:
        roles: The networks.
        processes: The processes of the run.
        cond: Encoded prompts that were in use here, batch B.
        null: The encoded empty prompt, batch B.
        noise: Standard normal latents, [B, ...].
        prompts: The prompts' texts, B of them.
    """
    model = roles.backbone.source
    found = list(_of_prompts(cond, null, prompts, f"the text encoders of {model}"))
    with torch.no_grad():
        for network in (TEACHER, STUDENT, FAKE_TEACHER, *roles.modules):
            found += _of_weights(roles, network, str(model))
            if network not in roles.modules:  # asked by all processes: it may be sharded
                found += _of_predictions(roles, network, (cond, null), noise)
    everyone = [each for one in processes.exchange(found) for each in one]
    return min(everyone)[1] if everyone else None


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers in some tensors are finite; of sharded ones, in this process's shards."""
    found = [each for each in map(_local, tensors) if each.is_floating_point() and each.numel()]
    # Eight bits, as of some moments, have no arithmetic.
    numbers = [each.float() if each.element_size() == 1 else each for each in found]
    largest = torch._foreach_norm(numbers, float("inf")) if numbers else ()
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in largest:
        by_device.setdefault(norm.device, []).append(norm.float())
    return all(bool(torch.stack(norms).isfinite().all()) for norms in by_device.values())


def _of_prompts(
    cond: Conditioning, null: Conditioning, prompts: Sequence[str], encoder: str
) -> Iterator[tuple[int, str]]:
    cure = f"check {encoder}, or encode data.cache anew"
    if not all(_finite(each) for each in null.tensors.values()):
        yield 0, f"the embedding of the empty prompt is not finite: {cure}"
    for number, prompt in enumerate(prompts):
        one = cond.select(slice(number, number + 1))
        if not all(_finite(each) for each in one.tensors.values()):
            text = " ".join(prompt.split())[:_SHOWN]
            yield 1, f"the embedding of prompt {text!r} is not finite: {cure}"
            return


def _of_weights(roles: Roles, network: str, model: str) -> Iterator[tuple[int, str]]:
    weights: Mapping[str, Tensor]
    if network == TEACHER:  # which may share its module with adapters that are trained
        trained = {id(p) for name in roles.trained for p in roles.parameters(name).values()}
        named = roles.net(TEACHER).named_parameters()
        weights = {name: p for name, p in named if id(p) not in trained}
        cure = f"{model} is damaged, fetch it anew"
    else:
        weights, cure = roles.state(network), _CURES.get(network, "it has diverged: lower its rate")
    wrong = [name for name, each in weights.items() if not _finite(each)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        text = f"weights of the {_words(network)} are not finite ({wrong[0]}{more}): {cure}"
        yield 2 + 2 * _rank(roles, network), text


def _of_predictions(
    roles: Roles, network: str, conds: Sequence[Conditioning], noise: Tensor
) -> Iterator[tuple[int, str]]:
    sound = True
    for cond in conds:
        for sigma in _SIGMAS:
            sigmas = torch.full((len(noise),), sigma, device=noise.device)
            sound &= _finite(roles.velocity(network, sigma * noise, sigmas, cond))
    if not sound:
        text = f"the {_words(network)} predicts values that are not finite: {_CURES[network]}"
        yield 3 + 2 * _rank(roles, network), text


def _rank(roles: Roles, network: str) -> int:
    return (TEACHER, STUDENT, FAKE_TEACHER, *roles.modules).index(network)


def _words(network: str) -> str:
    return network.replace("_", " ")


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; a whole one as it is."""
    sharded: Any = tensor
    return sharded.to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _finite(tensor: Tensor) -> bool:
    mine = _local(tensor)
    if type(mine) is not Tensor or not mine.is_floating_point():
        return True  # packed numbers of a quantized network are always finite
    return is_finite([mine])
