"""Trials of a model: what its configurations make impossible is said before it is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.models.dummy_conditioning import dummy_conditioning
from fewstep.models.libraries import third_party
from fewstep.utils.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.models.base import Backbone
    from fewstep.models.encoding import Encoding

_PROMPTS = ("blue", "pink")  # of equal length, for tokenizers that know no word
_SIDES = tuple(2**power for power in range(4, 12))


@torch.no_grad()
def try_shapes(backbone: Backbone) -> None:
    """Calls the network and the autoencoder of a meta backbone once, without values.

    Settings that fit no weight, such as axes of positions or a mean of the latents, are wrong only
    then.

    Raises:
        FewstepError: A component cannot be called.
    """

    def latents() -> Tensor:
        for side in _SIDES:
            try:
                return torch.empty(1, *backbone.latent_shape(side, side), device="meta")
            except FewstepError:
                continue
        raise ValueError("it draws pictures of no size")

    place = backbone.source / backbone.net_name
    xt: Tensor = third_party(backbone.source, latents)
    calls: dict[str, Callable[[], Tensor]] = {"vae": lambda: backbone.decode(xt)}
    if type(backbone).__module__.startswith("fewstep."):  # others may encode as they like
        cond = dummy_conditioning(backbone, 1, torch.float32)
        sigma = torch.empty(1, device="meta")
        calls[backbone.net_name] = lambda: backbone.velocity(backbone.net, xt, sigma, cond)
    for name, call in calls.items():
        result: Tensor = third_party(backbone.source / name, call)
        if name == backbone.net_name and result.shape != xt.shape:
            raise FewstepError(
                f"{place}: answers with shape {list(result.shape)} for {list(xt.shape)}; are its "
                "numbers of channels right?",
                code="mismatch",
            )


@torch.no_grad()
def try_encoders(backbone: Encoding) -> bool:
    """Encodes two prompts, and compares what each text encoder reads and gives; True in the end.

    Raises:
        FewstepError: A text encoder fails, or two prompts are the same to it.
    """
    read: dict[str, list[Tensor]] = defaultdict(list)
    given: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for name in backbone.encoder_names:

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            values = (*args, *kwargs.values())
            read[name] += [x for x in values if isinstance(x, Tensor) and not x.is_floating_point()]
            given[name] += [x for x in (output[0],) if isinstance(x, Tensor)]

        if isinstance(encoder := getattr(backbone.pipe, name, None), nn.Module):
            handles.append(encoder.register_forward_hook(note, with_kwargs=True))
    try:
        for prompt in _PROMPTS:
            third_party(backbone.source, backbone.encode_prompts, [prompt])
    finally:
        for handle in handles:
            handle.remove()
    for name in given:
        if _same_halves(read[name]):
            place = backbone.source / name.replace("text_encoder", "tokenizer")
            raise FewstepError(
                f"{place}: different prompts become the same tokens; is its vocabulary whole, and "
                "max_sequence_length large enough?",
                code="damaged",
            )
        if _same_halves(given[name]):
            raise FewstepError(
                f"{backbone.source / name}: different prompts become the same embeddings; get the "
                "model's folder again",
                code="damaged",
            )
    return True


def _same_halves(tensors: list[Tensor]) -> bool:
    """Whether what the first prompt caused equals what the second did."""
    half = len(tensors) // 2
    pairs = zip(tensors[:half], tensors[half:], strict=False)
    return bool(tensors) and all(torch.equal(first, second) for first, second in pairs)


def require_finite(result: Tensor, what: str, network: Any) -> None:
    """Refuses values that are infinite or not a number.

    Args:
        result: What a network gave.
        what: The place and the kind of the values, for the message.
        network: The network; where it computes in float16, that is a likely reason.

    Raises:
        FewstepError: There are some.
    """
    if not result.isfinite().all():
        cure = "are its weights sound?"
        if getattr(network, "dtype", None) == torch.float16:
            cure = "they overflow in float16: try --dtype bfloat16 or float32"
        raise FewstepError(f"{what} are not finite; {cure}", code="non-finite")
