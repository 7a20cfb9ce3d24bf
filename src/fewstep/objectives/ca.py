"""CA, guidance augmentation: what classifier-free guidance would add, built into the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fewstep.core.schedules import Law, UpToAnchor
from fewstep.objectives.base import Positive, Pull
from fewstep.objectives.directions import Guidance
from fewstep.objectives.sites import AtAnchor, Site


class CA(Pull):
    """The student's x0 at the anchor, pulled along the teacher's guidance direction, Eq. 22.

    Probed at s ~ U(0, sigma_i): guidance belongs to what the anchor has not yet decided.

    Attributes:
        alpha: Strength of the guidance.
    """

    name: Literal["ca"] = "ca"
    site: Site = AtAnchor()
    probe: Law = UpToAnchor()
    alpha: Positive = 7.0

    @property
    def misfits(self) -> Mapping[str, str]:
        """It asks for the teacher without a prompt."""
        return {"embedded": "its guidance is an input, not an empty prompt; use ca_embedded"}

    @property
    def direction(self) -> Guidance:
        """Where the prompt pulls, Eq. 22."""
        return Guidance(self.alpha)
