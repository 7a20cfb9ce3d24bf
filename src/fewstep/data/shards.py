"""What the files of stored embeddings must hold: the index, and the headers of shards."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter

_Files = dict[
    Annotated[str, Field(pattern=r"^(null|prompts-[0-9a-f]{16})\.safetensors$")],
    Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")],
]


class _KeyContent(BaseModel):
    model: str | None
    family: str
    dtype: str
    options: dict[str, Any]


class IndexContent(BaseModel):
    """What `INDEX` holds; names are those that `Embeddings` gives, which lead nowhere else."""

    key: _KeyContent
    files: _Files


FILES: TypeAdapter[dict[str, str]] = TypeAdapter(_Files)
"""File name -> SHA-256, as a line of a journal holds them."""


class About(BaseModel):
    """What the header of a shard holds."""

    prompts: list[str]
    overlong: list[NonNegativeInt]


def about_of(tensors: Any) -> About:
    """What the header of a shard says.

    Raises:
        ValueError: Nothing of the kind.
        TypeError: Nothing at all.
    """
    about = About.model_validate_json((tensors.metadata() or {})["about"])
    if any(row >= len(about.prompts) for row in about.overlong):
        raise ValueError("rows that are not there")
    return about


def layout_of(tensors: Any, rows: int | None = None) -> dict[str, tuple[str, list[int]]]:
    """Names, dtypes and shapes of a shard's tensors without their first axis.

    Raises:
        ValueError: There is none, or one has not as many rows as it should.
    """
    found = {}
    for name in tensors.keys():  # noqa: SIM118 - it has nothing else of a mapping
        part = tensors.get_slice(name)
        first, *rest = part.get_shape()
        if rows not in (None, first):
            raise ValueError(f"{name} has {first} rows, not {rows}")
        found[name] = part.get_dtype(), rest
    if not found:
        raise ValueError("no tensors")
    return found
