"""Every wrong input is refused in one line that names place and cure, and nothing is written."""

from __future__ import annotations

import pytest

from faults.table import area_names, cases_of, run_all, some_of

QUICK = 6  # cases of each area in `make test`


@pytest.mark.parametrize("area", area_names())
def test_a_few_wrong_inputs_of_each_area_are_refused(area, count):
    counts, offenders = run_all(some_of(cases_of(area), QUICK))
    count("wrong inputs", counts.total())
    assert not offenders, "\n".join(offenders)


@pytest.mark.slow
@pytest.mark.parametrize("area", area_names())
def test_every_wrong_input_is_refused(area, count):
    cases = cases_of(area)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    counts, offenders = run_all(cases)
    count("wrong inputs", counts.total())
    assert not offenders, "\n".join(offenders)
