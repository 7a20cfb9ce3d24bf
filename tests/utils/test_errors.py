"""Messages name the nearest valid word."""

from __future__ import annotations

from fewstep.utils.errors import FewstepError, did_you_mean, unknown


def test_the_nearest_word_is_named():
    assert did_you_mean("alhpa", ["alpha", "weight"]) == "did you mean 'alpha'?"


def test_all_words_are_named_when_none_is_near():
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "there are none"


def test_unknown_builds_an_error_for_users():
    error = unknown("objective", "cmd", ["cdm", "dm"])
    assert isinstance(error, FewstepError)
    assert str(error) == "unknown objective 'cmd': did you mean 'cdm'?"
