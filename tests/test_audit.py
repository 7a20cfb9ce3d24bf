"""The audit never takes what it could not look up for safe."""

from __future__ import annotations

import pytest

from audit import AFFECTED, NONE, UNKNOWN, verdict

SAFE = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
UNSEEN = {"name": "torch", "version": "3", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([SAFE], NONE),
        ([SAFE, BAD], AFFECTED),
        ([BAD, UNSEEN], AFFECTED),
        ([SAFE, UNSEEN], UNKNOWN),
        ([UNSEEN], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_what_was_not_looked_up_is_not_safe(found, code):
    told = verdict(found)
    assert told[0] == code
    for each in found:
        if each is not SAFE:
            assert each["name"] in "\n".join(told[1]) or all(e is UNSEEN for e in found)
