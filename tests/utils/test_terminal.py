"""What is shown cannot act on a terminal, and tells no secrets."""

from __future__ import annotations

import io
import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fewstep.utils.terminal import one_line, printable, tell

ANYTHING = st.text(st.characters(codec=None, exclude_categories=[]))


@given(ANYTHING)
def test_what_is_printed_moves_no_cursor_and_can_be_encoded(text):
    shown = printable(text)
    shown.encode()
    assert {unicodedata.category(each) for each in shown} & {"Cc", "Cs", "Zl", "Zp"} <= {"Cc"}
    assert not {each for each in shown if unicodedata.category(each) == "Cc"} - {"\t", "\n"}
    assert len(one_line(text).splitlines()) <= 1


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text


def test_a_console_shows_a_name_as_text():
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    tell(console, "[bold]runs/\x1b[31mred\x1b]0;title\x07[/bold]")
    written = console.file.getvalue()
    assert "[bold]runs/" in written and not {"\x1b", "\x07"} & set(written)


def test_secrets_are_masked():
    token = "hf_" + "A1b2C3d4" * 4
    shown = printable(f"https://anna:pass@example.org/x {token}")
    assert not [secret for secret in ("anna", "pass@", token) if secret in shown]
    assert "example.org/x" in shown
