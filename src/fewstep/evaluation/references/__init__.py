"""Sources of real pictures to compare with: one file each, found by name.

Installed packages may add more (``fewstep.references``): a function that returns a `Source`, with
one argument if it takes a place to read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from fewstep.utils.registry import Registry, load_named


class Source(Protocol):
    """Gives real pictures.

    Attributes:
        paired: Whether picture i shows prompt i, and another seed gives other pictures. If so, all
            metrics are computed for real pictures as well, which shows how good a figure can get;
            if not, pictures are only what others are compared with.
    """

    paired: bool

    def draw(self, prompts: Sequence[str], seed: int, size: tuple[int, int]) -> Iterator[Tensor]:
        """Real pictures, a batch [B, 3, H, W] in [0, 1] at a time, B at most 64.

        Args:
            prompts: What they show, one picture each; of no meaning to a source that is not paired.
            seed: Decides what the prompts leave open.
            size: Height and width.

        Raises:
            FewstepError: A prompt it cannot draw.
        """
        ...


SOURCES = Registry[Callable[..., Source]]("source of real pictures", "fewstep.references", __name__)
load = partial(load_named, SOURCES)
"""The source of ``NAME`` or ``NAME:PLACE``, such as ``folder:PATH``; see `load_named`."""
