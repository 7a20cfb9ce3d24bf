"""The report: one file that needs nothing, shows what there is, and takes prompts for text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from browser import CHROMIUM, FLAGS
from fewstep.evaluation import evaluate_run, summarize
from fewstep.report import write_report
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json, write_json
from toyworld_training.prompts import distinct_prompts

NASTY = '<script>document.title = "owned"</script> & "quoted" <b>bold</b> \u202e {{ 7 * 7 }}'
VOID = {"meta", "img", "br", "link", "input", "hr", "line", "rect", "circle", "path"}


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """A run with every kind of file a report is made of, and a prompt that means harm."""
    prompts = tmp_path_factory.mktemp("prompts") / "heldout.txt"
    captions = map(str, distinct_prompts(8, 5, held_out=True))
    prompts.write_text("\n".join(captions) + "\n", encoding="utf-8")
    configurations = [
        {"model": "teacher", "steps": 6, "guidance": 3.0},
        {"model": "teacher", "steps": 4, "guidance": 3.0},
        *({"model": "student", "steps": steps} for steps in (1, 2, 4, 8)),
    ]
    settings = {"prompts": str(prompts), "repeats": [2, 2], "gallery": 3, "references": "scenes"}
    settings["metrics"] = ["accuracy", "frechet", "diversity"]
    criteria = [
        {"name": "minutes", "label": "whole run, minutes", "figure": "minutes", "at_most": 12},
        {"name": "never", "figure": "student@4.accuracy", "at_least": 2},
        {"name": "unknown", "figure": "student@5.accuracy", "at_least": 0},
    ]
    folder = make_run(evaluate={**settings, "configurations": configurations}, criteria=criteria)
    evaluate_run(folder)
    gallery = read_json(folder / "evaluation" / "gallery.json")
    gallery["prompts"][1] = NASTY
    write_json(folder / "evaluation" / "gallery.json", gallery)
    rows = [
        {"step": i, "loss/dm": 1 / (i + 1), "loss/<i>x</i>": 0.5, "preview/score": i / 40}
        for i in range(40)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "previews").mkdir()
    for step in range(0, 41, 5):
        Image.new("RGB", (60, 90), (step, 80, 120)).save(
            folder / "previews" / f"step-{step:08d}.png"
        )
    summarize(folder, seconds=61, peak_memory_gb=1.0)
    return folder


class Page(HTMLParser):
    """Tags and attributes of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_file_stands_alone(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "action"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:60])
        assert not name.startswith("on")
    style = (run / "report.html").read_text(encoding="utf-8").split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_it_shows_what_the_run_has(run):
    text = write_report(run).read_text(encoding="utf-8")
    for words in (
        "Teacher, 6 steps",
        "Teacher, 4 steps",
        "Student, 4 steps",
        "The student in 1, 2, 4, 8 steps",
        "student@4",
        "real pictures",
        "Prompts right",
        "Student: loss per objective",
        "Preview score",
        "step 40",
        "whole run, minutes",
        "1 min 1 s",
        "max_sequence_length: 16",
        f"torch {torch.__version__}",
    ):
        assert words in text, words
    # 3 prompts x (2 teachers + student, then 4 students), and 6 preview sheets.
    assert text.count("data:image/png;base64,") == 3 * 3 + 3 * 4 + 6
    assert "1 of 3 criteria met" in text
    assert text.count("chip good") == text.count("chip bad") == 1 and "not measured" in text


def test_a_run_without_criteria_is_not_judged(make_run):
    folder = make_run()
    write_json(folder / "evaluation.json", {"configurations": [], "columns": {}})
    text = write_report(folder).read_text(encoding="utf-8")
    body = text.split("</style>")[1]
    assert not {"verdict", "chip", "criteria"} & set(re.findall(r"\w+", body.split("<pre>")[0]))


def test_figures_measured_earlier_are_marked(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    evaluation = read_json(folder / "evaluation.json")
    made = {"where": "shipped", "date": "2001-02-03", "hardware": {"cpu": "an abacus"}}
    evaluation["configurations"][0]["measured"] = made
    write_json(folder / "evaluation.json", evaluation)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "2001-02-03" in text and "an abacus" in text and "teacher@6 guided *" in text
    assert "student@4 *" not in text


def test_a_metric_says_how_its_figures_are_shown(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    evaluation = read_json(folder / "evaluation.json")
    column = {"label": "Sharpness", "higher_is_better": True, "percent": False, "group": ""}
    evaluation["columns"]["sharp"] = column
    evaluation["columns"]["edges"] = column | {"label": "edges", "group": "By part"}
    evaluation["configurations"][0]["figures"] |= {"sharp": 3.25, "sharp_error": 0.5, "edges": 7}
    write_json(folder / "evaluation.json", evaluation)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Sharpness" in text and "3.25 ± 0.500" in text and "By part" in text


def test_prompts_are_text(run):
    text = write_report(run).read_text(encoding="utf-8")
    assert "&lt;script&gt;document.title" in text and "<script" not in text
    assert "{{ 7 * 7 }}" in text and "<b>bold" not in text and "<i>x" not in text


def test_the_report_of_a_run_that_was_not_evaluated_shows_its_training(make_run, tmp_path):
    folder = make_run()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/dm": 0.5}\n', encoding="utf-8")
    file = write_report(folder, tmp_path / "elsewhere.html")
    text = file.read_text(encoding="utf-8")
    Page(text)
    assert "Student: loss per objective" in text and "criteria met" not in text
    assert "<h2>Figures" not in text and "Side by side" not in text


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(FewstepError):
        write_report(tmp_path)


# ------------------------------------------------------------------------------- a real browser


def browse(page, folder, *flags):
    """Opens a page in headless Chromium with a profile of its own and no way to any host."""
    profile = folder / "profile"
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=3000",
        *flags,
        page.resolve().as_uri(),
    ]
    env = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_it_and_runs_nothing(run, tmp_path):
    page = write_report(run)
    document = browse(page, tmp_path, "--dump-dom")
    assert f"<title>{run.name}: a text-to-image model in four steps</title>" in document
    assert "<script" not in document
    assert "&lt;script&gt;document.title" in document
    assert document.count("<img") == 27 and document.count("<svg") >= 2


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_paints_it_light_and_dark(run, tmp_path, dark):
    shot = tmp_path / "shot.png"
    flags = ["--window-size=1200,1600", f"--screenshot={shot}", "--hide-scrollbars"]
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    browse(write_report(run), tmp_path, *flags)
    with Image.open(shot) as opened:
        image = opened.convert("RGB")
    assert image.size == (1200, 1600)
    corner = sum(image.getpixel((3, 3))) / 3
    assert corner < 60 if dark else corner > 230
    assert len(image.getcolors(maxcolors=2**24)) > 500  # pictures and text, not a blank sheet
