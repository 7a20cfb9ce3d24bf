"""CDM, continuous-time distribution matching: DM at points between the anchors."""

from __future__ import annotations

from typing import Literal

from fewstep.core.schedules import Law, Uniform
from fewstep.objectives.directions import TeacherMinusFake
from fewstep.objectives.matching import Matching
from fewstep.objectives.sites import AlongVelocity, Site


class CDM(Matching):
    """As DM, with the student asked where its own velocity carries the anchor, Eq. 20b and 23.

    The student so answers at every sigma, not only at those of a grid.
    """

    name: Literal["cdm"] = "cdm"
    site: Site = AlongVelocity()
    probe: Law = Uniform()

    @property
    def direction(self) -> TeacherMinusFake:
        """From the fake teacher to the teacher, Eq. 23."""
        return TeacherMinusFake()
