"""The messages of common mistakes are those that were read over, see tests/messages.py."""

from __future__ import annotations

import messages


def test_messages_are_those_that_were_read_over():
    read_over = messages.FILE.read_text(encoding="utf-8")
    assert messages.collect() == read_over, "after reading: python tests/messages.py --update"
