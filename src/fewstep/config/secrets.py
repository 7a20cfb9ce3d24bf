"""Values that must not be written down: recipes name variables of the environment instead."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, PlainSerializer

from fewstep.config.strict import ConfigError
from fewstep.utils.privacy import is_secret
from fewstep.utils.terminal import masked

HIDDEN = "***"
"""What stands in a recipe's copies for a secret that it holds."""
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def _address(text: str) -> str:
    if text != HIDDEN and not _VARIABLE.fullmatch(text):
        refuse_odd_address(text)
    return text


def refuse_odd_address(text: str) -> None:
    """Checks that a message can be sent there; the address itself is in no error.

    Raises:
        ValueError: It is no https address, nor an http one of this machine.
    """
    try:
        parts = urlsplit(text)
        host, plain = parts.hostname, text.isascii() and text.isprintable() and " " not in text
        safe = parts.scheme == "https" or (parts.scheme == "http" and host in _LOCAL)
        sound = plain and safe and bool(host) and "@" not in parts.netloc
        sound = sound and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(
            "must be an https:// address without a user name (or http:// on localhost), or $NAME "
            "of a variable of the environment that holds one"
        )


SecretAddress: TypeAlias = Annotated[
    str,
    AfterValidator(_address),
    PlainSerializer(lambda text: text if _VARIABLE.fullmatch(text) else HIDDEN, return_type=str),
]
"""An address that is a secret: copies of the recipe have `HIDDEN` in its place.

Fields of this type take `repr=False`."""


def from_environment(value: Any, place: str) -> Any:
    """Nested plain values with the values of variables for texts such as ``$WANDB_API_KEY``.

    Args:
        value: As a recipe holds it.
        place: Where that is, for messages.

    Raises:
        ConfigError: There is no such variable.
    """
    if isinstance(value, Mapping):
        return {key: from_environment(each, f"{place}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [from_environment(each, place) for each in value]
    if not isinstance(value, str) or not (named := _VARIABLE.fullmatch(value)):
        return value
    if not (found := os.environ.get(named[1])):
        raise ConfigError(f"{place}: {value} is not set in the environment", code="missing-input")
    return found


def refuse_secrets(value: Any, place: str) -> None:
    """Checks that nested plain values hold no secret, as recipes are copied into run folders.

    Raises:
        ConfigError: A text has the name of a secret, or looks like one; it is not shown.
    """
    for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
        where = f"{place}.{key}"
        if isinstance(each, Mapping | list | tuple):
            refuse_secrets(each, where)
        elif (
            isinstance(each, str)
            and not _VARIABLE.fullmatch(each)
            and (is_secret(str(key)) or masked(each) != each)
        ):
            raise ConfigError(
                f"{where}: a secret does not belong in a recipe, which is copied into the run "
                "folder; write $NAME, and put it into the variable NAME of the environment"
            )
