"""The command ``fewstep push``."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli.console import note, say, say_json, table
from fewstep.cli.options import Json


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An export, or a run that has one.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repo on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes; send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put an export on the Hugging Face Hub, private unless told otherwise."""
    from fewstep.export.push import Push

    wanted = Push.prepare(run, repo, public=public)
    total = sum(wanted.files.values())
    if not as_json and dry:
        table(("file", "bytes"), [(name, f"{size:,}") for name, size in wanted.files.items()])
    if not dry:
        note(f"{len(wanted.files)} files, {total / 1e6:,.1f} MB, to {repo}")
    url = None if dry else wanted.send()
    if as_json:
        say_json({"repo": repo, "public": public, "files": wanted.files, "url": url})
        return
    seen = "public" if public else "private"
    say(f"nothing was sent to {repo} ({seen}): {total / 1e6:,.1f} MB" if dry else f"{seen}: {url}")
