"""The commands: each parses, calls one function of the library, and says what came out.

Heavy imports happen inside them, so that ``fewstep --help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep import __version__
from fewstep.cli.console import complain, note, say, say_json, table
from fewstep.cli.encode import encode
from fewstep.cli.init import init
from fewstep.cli.options import (
    Dtype,
    Json,
    Moved,
    Offload,
    Overrides,
    Resume,
    RunFolder,
    Which,
)
from fewstep.cli.plan import plan
from fewstep.cli.push import push
from fewstep.cli.recipes import recipes
from fewstep.cli.watch import watch
from fewstep.utils.errors import FewstepError
from fewstep.utils.registry import Registry
from fewstep.utils.resources import expand

app = typer.Typer(
    name="fewstep",
    help="Distil flow-matching text-to-image models to four steps (CDM, arXiv 2605.06376).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)
_GROUPS = Registry[typer.Typer]("command", "fewstep.commands")
for _name in _GROUPS.available():
    try:
        app.add_typer(_GROUPS.get(_name), name=_name)
    except FewstepError as error:  # a broken package must not take the other commands with it
        complain(str(error))


def _version(wanted: bool) -> None:
    if wanted:
        say(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil flow-matching text-to-image models to four steps (CDM, arXiv 2605.06376)."""


@app.command()
def demo(
    recipe: Annotated[str, typer.Option(help="Recipe to run from end to end.")] = "demo",
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<recipe>.")] = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Distil the embedded tiny pipeline, export, evaluate and report: minutes on a laptop."""
    from fewstep.config.shipped import find

    path = find(recipe)
    from fewstep.cli.demo import free_folder, run_all, show_criteria
    from fewstep.config import Recipe

    folder = out or Path("runs") / path.stem
    folder = folder if resume or out else free_folder(folder)
    summary = run_all(Recipe.from_file(path, overrides or []), folder, resume=resume)
    if as_json:
        say_json(summary)
        return
    show_criteria(summary)
    say(f"report: {folder / 'report.html'}")


@app.command()
def distill(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="YAML file, shipped recipe's name, or a run folder."),
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    resume_from: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEP", help="Go back to a checkpoint; later ones are kept."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<recipe>.")] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take; no weights, no files.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take a teacher that is distilled already.")
    ] = False,
    moved: Moved = None,
    as_json: Json = False,
) -> None:
    """Train a student by the recipe; of a run folder, by its own (--resume needs no more)."""
    from fewstep.config import Recipe
    from fewstep.config.shipped import find, run_folder

    overrides = [*(overrides or []), *(["model.force=true"] if force else [])]
    overrides += [f"model.path={moved}"] if moved else []
    if run := run_folder(recipe):
        folder, settings = out or run, Recipe.of_run(run, overrides)
    else:
        path = find(recipe)
        folder, settings = out or Path("runs") / path.stem, Recipe.from_file(path, overrides)
    if dry:
        _show_dry_run(settings, as_json)
        return
    from fewstep.train import Stopped
    from fewstep.train import distill as train
    from fewstep.train.checkpoint import store

    finished = True
    try:
        train(settings, folder, resume=resume, resume_from=resume_from)
    except Stopped:
        finished = False
    newest = store.listed(expand(folder) / "checkpoints")[-1]
    step, wrong = store.step_of(newest), store.unhealthy(newest)
    if as_json:
        done = {"run": str(folder), "step": step, "finished": finished}
        say_json(done | ({"unhealthy": wrong} if wrong else {}))
        return
    say(f"run: {folder}")
    if wrong:
        say(f"not healthy at step {step}: {wrong}; {store.way_out(folder)}")
    elif finished:
        say(f"next: fewstep evaluate {folder}; fewstep export {folder}")


app.command()(encode)
app.command()(init)
app.command()(plan)
app.command()(recipes)
app.command()(watch)


@app.command()
def sample(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Run or diffusers folder, or a hub id.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given often.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one per line.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=8, help="Evaluations per picture.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Picture i uses seed + i.")] = 0,
    out: Annotated[Path, typer.Option(help="Where pictures and manifest.jsonl go.")] = Path(
        "samples"
    ),
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes what is there.")] = "auto",
    dtype: Dtype = None,
    offload: Offload = None,
    moved: Moved = None,
    as_json: Json = False,
) -> None:
    """Draw pictures of prompts with an exported student (or any pipeline, without guidance)."""
    wanted = _prompts(prompt, prompts)
    from fewstep.inference.load import open_model
    from fewstep.inference.sample import Sampler, check_samples, write_samples

    out = expand(out)
    check_samples(out, wanted)
    how: Any = {"dtype": dtype or "auto", "device": device, "offload": offload}
    model = open_model(folder, base=moved, prompts=wanted, **how)
    rows = []
    for row in write_samples(model, wanted, out, sampler=Sampler.of(model, steps), seed=seed):
        note(f"{row['file']} {row['seconds']:.2f} s")
        rows.append(row)
    if as_json:
        say_json({"folder": str(out), "images": rows})
    else:
        say(f"{len(rows)} pictures: {out}")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Where to; default RUN/export.")] = None,
    which: Which = "best",
    export_format: Annotated[
        str | None,
        typer.Option("--format", help="diffusers, lora, comfyui, kohya, single-file ..."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="ema (the running mean, if kept) or raw (as trained).")
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Write a LoRA as a whole model; or with model.loras in it."),
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Repo id that the card's snippet should load.")
    ] = None,
    dtype: Dtype = None,
    moved: Moved = None,
    as_json: Json = False,
) -> None:
    """Write a run's student, as diffusers loads it or in another format, with a model card."""
    from fewstep.inference.load import export_model
    from fewstep.inference.runs import Place

    folder = export_model(
        Place(run, which, moved),
        out,
        format=export_format,
        merge=merge,
        address=address,
        dtype=dtype,
        weights=weights,
    )
    if as_json:
        say_json({"folder": str(folder)})
    else:
        say(f"exported: {folder}")


app.command()(push)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, made by distill.")],
    which: Which = "best",
    teacher_only: Annotated[
        bool,
        typer.Option(
            "--teacher-only", help="RUN is a recipe: measure its teacher, for evaluate.cache."
        ),
    ] = False,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the teacher's measurements go (--teacher-only).")
    ] = None,
    dtype: Dtype = None,
    offload: Offload = None,
    moved: Moved = None,
    as_json: Json = False,
) -> None:
    """Measure a run's student against its teacher, and write the report."""
    from fewstep.cli.demo import report, show_criteria
    from fewstep.config import Recipe
    from fewstep.evaluation import evaluate_run, measure_teacher

    how: Any = {"dtype": dtype or "auto", "offload": offload}
    if teacher_only:
        if out is None:
            raise FewstepError("evaluate --teacher-only: give --out FOLDER", code="missing-input")
        files = measure_teacher(Recipe.named(run, overrides or []), out, say=note, **how)
        if as_json:
            say_json({"files": files})
        else:
            table(("configuration", "measurements"), list(files.items()))
        return
    if overrides or out:
        raise FewstepError("evaluate: --set and --out go with --teacher-only", code="usage")
    evaluate_run(run, which=which, model=moved, say=note, **how)
    summary = report(Path(run))
    if as_json:
        say_json(summary)
        return
    rows = summary["configurations"]
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table(
        ("configuration", *names),
        [(row, *map(figures.get, names)) for row, figures in rows.items()],
    )
    show_criteria(summary)
    say(f"report: {Path(run) / 'report.html'}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders.")],
    as_json: Json = False,
) -> None:
    """Put the figures of two or more evaluated runs side by side."""
    from fewstep.cli.compare import figures

    found = figures(runs)
    if as_json:
        say_json({"runs": [str(run) for run in runs], "figures": found})
        return
    table(("figure", *map(str, runs)), [(name, *row) for name, row in found.items()])


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be distilled, and those that are refused."""
    from fewstep.cli.models import REFUSED_COLUMNS, SHOWN, matrix, refused

    rows, not_these = matrix(), refused()
    if as_json:
        say_json({"models": rows, "refused": not_these})
        return
    table(SHOWN, [[row[name] for name in SHOWN] for row in rows])
    tried = ", ".join(row["model"] for row in rows if row["status"] == "settings published")
    say(f"settings are published for {tried}; the others are untested at full size\n")
    table(REFUSED_COLUMNS, [[row[name] for name in REFUSED_COLUMNS] for row in not_these])


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option("--at", help="Where runs would be written.")] = Path(),
    demo: Annotated[bool, typer.Option("--demo", help="Also check what the demo needs.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show what is well, too.")] = False,
    as_json: Json = False,
) -> None:
    """Check whether this machine is ready, and say what to do if not."""
    from fewstep.cli.doctor import examine

    report = examine(folder.absolute(), ["demo"] if demo else [])
    if as_json:
        say_json(report)
    else:
        columns, checks = ("status", "name", "found", "fix"), report["checks"]
        wrong = [check for check in checks if check["status"] != "ok"]
        if rows := [[each[key] for key in columns] for each in (checks if everything else wrong)]:
            table(("", "what", "found", "to do"), rows)
        more = "" if everything else "; --all shows them"
        say(f"{len(checks) - len(wrong)} of {len(checks)} checks are well{more}")
    raise typer.Exit(0 if report["ok"] else 1)


def _show_dry_run(recipe: Any, as_json: bool) -> None:
    """What a recipe would take, as tables or as one object."""
    from fewstep.planning import dry_run

    found = dry_run(recipe)
    if as_json:
        say_json(found.as_json())
        return
    say(f"{found}\n")
    for line in found.notes:
        say(f"note: {line}")
    for key, file in found.missing.items():
        say(f"missing: {key}: there is no file {file}")
    say("nothing was loaded or written")


def _prompts(written: Sequence[str] | None, file: Path | None) -> list[str]:
    """Prompts from the command line, then from a file, in order."""
    from fewstep.data.prompts import fault_of, read_prompts

    found = list(written or [])
    for text in found:
        if fault := fault_of(text):
            raise FewstepError(f"--prompt: {fault}")
    if file is not None:
        found += read_prompts(file).texts
    if not found:
        raise FewstepError(
            "sample: no prompts; give --prompt TEXT or --prompts FILE", code="missing-input"
        )
    return found
