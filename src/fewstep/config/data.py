"""The data section of a recipe: which prompts, how many at a time, who encodes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from fewstep.config.strict import Count, Section

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".yaml")


class DataRecipe(Section):
    """The prompts; no images are needed.

    Attributes:
        prompts: File (.txt: one a line, .jsonl, .csv, .parquet), folder of such tables, or the id
            of a data set on the hub.
        column: Which column or key holds the prompt; None takes prompt, caption or text.
        split: Which part of a folder or data set; None takes ``train`` where it is there, else all.
        batch_size: Samples of one iteration.
        accumulate: Parts the batch of all processes is worked through in, to save memory; the
            gradient is the same. Several processes share the parts, see `parts`.
        cache_gb: Bound on the encoded prompts kept in memory.
        encode_ahead: Encode all prompts first, without bound, and free the text encoders' memory.
        cache: Folder that ``fewstep encode`` made: text encoders are not even loaded; None encodes.
    """

    prompts: str
    column: str | None = None
    split: str | None = None
    batch_size: Count
    accumulate: Count = 1
    cache_gb: Annotated[float, Field(ge=0)] = 2.0
    encode_ahead: bool = False
    cache: str | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
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
