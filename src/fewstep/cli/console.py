"""What the command line says: results on stdout, everything else on stderr.

On a terminal tables are drawn; into a pipe they are plain aligned columns. With ``--json`` stdout
carries exactly one JSON object. Of several processes only the first one speaks. Whatever is said
passes `printable`: no file name, prompt or key can act on the terminal.
"""

from __future__ import annotations

import errno
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fewstep.utils.ranks import rank
from fewstep.utils.tables import cell, text_table
from fewstep.utils.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table as Drawn
    from rich.text import Text


def note(message: str) -> None:
    """One line of progress, on stderr."""
    if rank() == 0:
        complain(message)


def complain(message: str) -> None:
    """One line on stderr, of whichever process; if nobody listens any more, that is no error."""
    with suppress(OSError):
        sys.stderr.write(printable(message) + "\n")
        sys.stderr.flush()


def say(message: str) -> None:
    """One line of result, on stdout; a terminal that has closed is no error."""
    if rank() == 0:
        try:
            sys.stdout.write(printable(message) + "\n")
        except OSError as error:
            if error.errno != errno.EIO:
                raise


def say_json(content: Mapping[str, Any]) -> None:
    """The one machine-readable object, on stdout; figures that are not finite become null."""
    # Escaped, so that a program gets back exactly the name of a file, whatever it holds.
    say(json.dumps(_finite(content), indent=2, default=str, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Rows under headings on stdout: drawn on a terminal, aligned columns elsewhere."""
    if not sys.stdout.isatty():
        say(text_table((title, columns, rows)))
        return
    from rich import print as draw

    draw(drawn(columns, rows, title))


def drawn(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> Drawn:
    """The same for a terminal, as wide as that is: long cells are folded, and nothing is left out.

    Args:
        columns: The headings.
        rows: A cell for each.
        title: What stands above; "" is left out.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn

    made = Drawn(title=_shown(title) if title else None, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        made.add_column(_shown(column), overflow="fold")
    for row in rows:
        made.add_row(*(_shown(cell(value)) for value in row))
    return made


def _shown(text: str) -> Text:
    """A text that is drawn as it is: markup and control characters in it do nothing."""
    from rich.text import Text

    return Text(printable(text))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
