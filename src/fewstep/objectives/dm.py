"""DM, distribution matching: from what the student draws to what the teacher would."""

from __future__ import annotations

from typing import Literal

from fewstep.core.schedules import Law, Uniform
from fewstep.objectives.directions import TeacherMinusFake
from fewstep.objectives.matching import Matching
from fewstep.objectives.sites import AtAnchor, Site


class DM(Matching):
    """The student's x0 at the anchor, pulled from the fake teacher to the teacher, Eq. 23."""

    name: Literal["dm"] = "dm"
    site: Site = AtAnchor()
    probe: Law = Uniform()

    @property
    def direction(self) -> TeacherMinusFake:
        """From the fake teacher to the teacher, Eq. 23."""
        return TeacherMinusFake()
