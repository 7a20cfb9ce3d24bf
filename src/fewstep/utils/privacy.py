"""Texts as they may be published: no paths of this machine, no user names in URLs, no tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fewstep.utils.resources import SCHEME
from fewstep.utils.terminal import masked

_LOCAL = re.compile(r"(/|~|\.{1,2}/|\\\\|file:|[A-Za-z]:[\\/])")
_SECRET = re.compile(r"token|secret|passw|api_?key|credential", re.IGNORECASE)
_LONGEST = 4096  # characters of a path


def is_local(text: str) -> bool:
    """Whether an address is a path on this machine; a name without folders is not."""
    if text.startswith(SCHEME) or len(text) > _LONGEST:
        return False
    try:
        return bool(_LOCAL.match(text)) or ("/" in text and Path(text).exists())
    except (OSError, ValueError):
        return False


def is_secret(key: str) -> bool:
    """Whether a setting is called as secrets are."""
    return bool(_SECRET.search(key))


def public(text: str) -> str:
    """A text without what only this machine or this user should know.

    Of a local path, also behind a word such as ``folder:``, the name remains.
    """
    kind, colon, rest = text.partition(":")
    if is_local(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or "folder"
    if colon and kind.isidentifier() and not rest.startswith("//") and is_local(rest):
        return f"{kind}:{public(rest)}"
    return masked(text)


def public_values(value: Any) -> Any:
    """Nested plain values with public texts; those under a key such as ``api_key`` are masked."""
    if isinstance(value, dict):
        return {
            key: "***" if isinstance(inner, str) and is_secret(str(key)) else public_values(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [public_values(inner) for inner in value]
    return public(value) if isinstance(value, str) else value
