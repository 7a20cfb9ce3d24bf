"""The command ``fewstep watch``: a page about a run while it trains."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli.console import say, say_json
from fewstep.cli.options import Json, RunFolder
from fewstep.utils.resources import expand


def watch(
    run: RunFolder,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes a free one.")
    ] = 8321,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run in a browser: previews, curves, what they mean. Ctrl-C ends it, not the run."""
    from fewstep.report.live import LiveRun
    from fewstep.report.serve import HOST, server

    with server(LiveRun(expand(run)), port) as made:
        url = f"http://{HOST}:{made.server_address[1]}"
        if as_json:
            say_json({"run": str(run), "url": url})
        else:
            say(f"watch: {url} (this machine only; Ctrl-C ends it)")
        _flush()
        if open_it:
            import webbrowser

            webbrowser.open(url)
        made.serve_forever()


def _flush() -> None:
    """Whoever reads through a pipe gets the address at once."""
    import sys

    sys.stdout.flush()
