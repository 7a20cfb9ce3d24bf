"""The data section of a recipe: which prompts, how many at a time, who encodes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from fewstep.config.strict import Name, Section, Size

BUILTIN = "builtin:"
"""What the name of a list of prompts that comes with fewstep begins with."""
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".yaml")

PromptSource: TypeAlias = Name | Annotated[tuple[str, ...], Field(min_length=1)]
"""A path or address, or the prompts themselves as a list."""


class DataRecipe(Section):
    """The prompts; no images are needed."""

    prompts: PromptSource
    """A file in UTF-8 (.txt with one prompt a line, .jsonl, .csv, .tsv) or .parquet, a folder of
    such tables, the id of a data set on the hub, or a list of prompts; or `builtin:general`, 4,096
    varied prompts that come with fewstep (CC0; `builtin:general-heldout` to evaluate)."""
    column: Name | None = None
    """Column or key that holds the prompt; null takes `prompt`, `caption` or `text`. For tables
    that call it otherwise."""
    split: Name | None = None
    """Part of a folder or data set; null takes `train` if there is one, else everything."""
    batch_size: Size
    """Samples of one iteration, over all processes together."""
    accumulate: Size = 1
    """Number of parts that the batch of all processes is worked through in. Raise it until a part
    fits the memory; the gradient stays the same."""
    cache_gb: Annotated[float, Field(ge=0, le=1e6)] = 2.0
    """Bound on the encoded prompts kept in memory, GB (10^9 bytes), where they are encoded as they
    are needed; others are encoded again."""
    encode_ahead: bool = False
    """Encode all prompts before training, into `embeddings` of the run folder, and free the text
    encoders' memory. Processes share the work and the files; a run that was stopped goes on where
    it was. For up to some 10,000 prompts."""
    cache: Name | None = None
    """Folder that `fewstep encode` wrote; text encoders are not even loaded then. For many
    prompts, or encoders that do not fit beside the networks."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        table = next((key for key in ("column", "split") if getattr(self, key) is not None), None)
        if table is not None and not isinstance(self.prompts, str):
            raise ValueError(f"{table} is of tables, but prompts is a list; remove one of them")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate ({self.accumulate}) must not exceed batch_size ({self.batch_size})"
            )
        return self

    def parts(self, processes: int) -> int:
        """Parts that each of several processes works its own samples through in.

        As many samples are at work at a time as with one process, or fewer. Processes that share
        the batch evenly have a sample for each part.
        """
        return -(-self.accumulate // processes)


def is_repo_id(text: str) -> bool:
    """Whether a text that is no path on this disk has the form of a data set's id, owner/name."""
    return bool(_REPO.fullmatch(text)) and Path(text).suffix not in _FILES
