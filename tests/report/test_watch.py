"""The page of a run while it trains: true at every moment, for this machine only, and usable."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from PIL import Image

from browser import CHROMIUM, Browser
from fewstep.cli import run as command
from fewstep.config import Recipe
from fewstep.report.live import LiveRun
from fewstep.report.metrics import GrowingMetrics
from fewstep.report.serve import HOST, server
from fewstep.report.words import words
from fewstep.train.monitor.divergence import Divergence
from fewstep.utils.files import write_json
from fewstep.utils.lock import locked
from refusals import refuses

PROMPTS = ["a red circle left of a blue square", "<script>document.title = 'owned'</script> & more"]
NASTY = ("/../config.yaml", "/previews/step-00000000.png", "/preview/../0/0", "/config.yaml",
         "/preview/0/0/%2e%2e", "//etc/passwd", "/preview/0/9/0", "/preview/77/0/0")  # fmt: skip


def row(step, **more) -> dict:
    """What a run that trains 30 seconds a step writes of one."""
    health = {"health/std_ratio": 1.0 + step / 500, "health/mean_drift": 0.0}
    losses = {"health/fake_teacher_loss@0.5": 0.01, "health/teacher_loss@0.5": 0.01}
    figures = {"loss/dm": 1 / (step + 1), "loss/fake_teacher": 0.05, "seconds": 30.0}
    figures |= {"images_per_second": 1.6, "memory_gb": 15.2, "preview/score": step / 100 - 0.4}
    return {"step": step, **figures, **health, **losses, **more}


def write_rows(folder, rows) -> None:
    text = "".join(json.dumps(each) + "\n" for each in rows)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)


def draw_preview(folder, step) -> None:
    """Two prompts down; the teacher and the student, who gets brighter, across."""
    sheet = Image.new("RGB", (2 * 66, 2 * 66), "white")
    for y in (0, 66):
        sheet.paste((60, 90, 140), (0, y, 64, y + 64))
        sheet.paste((60 + step, 90, 140), (66, y, 130, y + 64))
    sheet.save(folder / "previews" / f"step-{step:08d}.png")


def save(folder, step, **state) -> None:
    (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    write_json(folder / "checkpoints" / f"step-{step:08d}" / "state.json", {"step": step, **state})


@pytest.fixture
def folder(tmp_path):
    """A run that has got to step 40 of 100, and nobody at work in it."""
    made = tmp_path / "runs" / "my-run"
    (made / "previews").mkdir(parents=True)
    changes = {"train.steps": 100, "preview.every": 20}
    (made / "config.yaml").write_text(Recipe.named("demo", changes).to_yaml(), encoding="utf-8")
    write_rows(made, (row(step) for step in range(41)))
    columns = ["teacher, 50 steps, guidance 2", "student, 4 steps"]
    write_json(made / "previews" / "previews.json", {"columns": columns, "rows": PROMPTS})
    for step in (0, 20, 40):
        draw_preview(made, step)
    save(made, 40, scores={"20": -0.2, "40": 0.0})
    return made


@contextmanager
def served(folder):
    """The port at which a run is shown, in a thread of this process."""
    with server(LiveRun(folder), 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made.server_address[1]
        finally:
            made.shutdown()
            thread.join()


def get(port, path, host=HOST) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_run_is_told_as_it_is_from_before_its_start_to_its_end(folder, tmp_path):
    about = LiveRun(folder)
    assert about.look()["state"][0] == "bad" and "killed" not in about.look()["state"][1]
    with locked(folder):
        found = about.look()
        assert (found["state"][0], found["progress"]) == ("busy", 0.4)
        assert found["facts"]["Time left"] == "about 30 min"
        write_rows(folder, [row(41)])
        assert about.look()["progress"] == 0.41
    save(folder, 60, scores={"20": -0.2, "40": 0.0, "60": -0.1}, past_saving=True)
    assert about.look()["state"][0] == "bad"
    save(folder, 100, scores={"40": 0.0, "100": -0.1})
    assert about.look()["state"] == ("good", "finished")

    begun = tmp_path / "begun"
    with locked(begun):
        found = LiveRun(begun).look()
    assert found["state"][0] == "busy" and not found["charts"] and not found["steps"]
    with refuses("missing-file", tmp_path):
        LiveRun(tmp_path)


def test_a_run_that_was_killed_or_has_ended_early_is_told_as_such(folder):
    write_json(folder / ".lock.json", {"host": socket.gethostname(), "pid": 2**22 + 1,
                                       "since": "2026-01-01 00:00:00 +0000"})  # fmt: skip
    assert "killed" in LiveRun(folder).look()["state"][1]
    (folder / ".lock.json").unlink()
    changes = {"train.steps": 100, "preview.every": 20, "train.early_stop": 1}
    changes["checkpoint.keep_best"] = 1
    (folder / "config.yaml").write_text(Recipe.named("demo", changes).to_yaml(), encoding="utf-8")
    assert LiveRun(folder).look()["state"][0] == "bad"
    save(folder, 60, scores={"20": -0.2, "40": 0.0, "60": -0.1})
    assert LiveRun(folder).look()["state"][0] == "good"


def test_only_what_is_new_is_read_unless_another_file_took_its_place(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = GrowingMetrics(file)
    assert metrics.look() == []
    file.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert [each["step"] for each in metrics.look()] == [0, 1]
    with file.open("a") as more:
        more.write('ep": 2}\nnonsense\n')
    assert [each["step"] for each in metrics.look()] == [2]
    other = tmp_path / "other"
    other.write_text('{"step": 0}\n')
    os.replace(other, file)
    metrics.look()
    assert [each["step"] for each in metrics.rows] == [0] and metrics.beginnings == 2


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ({"health/fake_teacher_loss@0.5": 0.03}, "fake teacher"),
        ({"health/std_ratio": 1.5}, "spread"),
        ({"health/std_ratio": 0.6}, "spread"),
        ({"health/mean_drift": -0.3}, "drift"),
        ({"health/std_ratio": 5.0}, "apart"),
    ],
)
def test_what_stands_out_is_said_and_what_does_not_is_not(figures, word):
    def told(last):
        judge, rows = Divergence(), [row(0), {**row(1), **last}]
        for each in rows:
            verdict = judge.see(each["step"], each)
        return [each.what for each in words(rows, verdict) if each.level != "good"]

    assert told({}) == []
    (what,) = told(figures)
    assert word in what


def test_pictures_that_get_brighter_than_the_teachers_are_noticed(folder):
    assert not [each for each in LiveRun(folder).look()["words"] if "brighter" in each.what]
    draw_preview(folder, 80)
    assert [each for each in LiveRun(folder).look()["words"] if "brighter" in each.what]


def test_nothing_but_the_page_is_served_and_to_this_machine_only(folder):
    with served(folder) as port:
        assert get(port, "/")[0] == get(port, "/live")[0] == get(port, "/watch.js")[0] == 200
        status, picture = get(port, "/preview/40/1/1")
        assert status == 200 and picture.startswith(b"\x89PNG")
        for path in NASTY:
            assert get(port, path)[0] == 404, path
        assert get(port, "/", host=f"localhost:{port}")[0] == 200
        assert get(port, "/", host="evil.example")[0] == 403
        with refuses("no-access", "watch"):
            server(LiveRun(folder), port)
        assert command(["watch", str(folder), "--port", str(port)]) == 2


def test_the_command_says_where_the_page_is(folder):
    arguments = [sys.executable, "-m", "fewstep", "watch", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        text = "".join(process.stdout.readline() for _ in range(4))
        port = int(json.loads(text)["url"].rpartition(":")[2])
        assert get(port, "/")[0] == 200
        process.terminate()
        assert process.wait(30) == 143


# ------------------------------------------------------------------------------- a real browser


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_it_moves_the_slider_and_follows_the_run(folder, tmp_path):
    shots = tmp_path / "shots"
    shots.mkdir()
    with served(folder) as port, Browser(tmp_path / "profile") as browser, locked(folder):
        loaded = "[...document.images].every((each) => each.complete && each.naturalWidth === 64)"
        for name, width, phone in (("desktop", 1280, False), ("phone", 390, True)):
            browser.open(f"http://{HOST}:{port}/", width, 844, phone=phone)
            browser.wait_for(f"document.images.length === 4 && {loaded}")
            assert browser.run("document.documentElement.scrollWidth") <= width
            browser.screenshot(shots / f"{name}.png")
        assert browser.run("document.title") == "my-run: training"
        assert all(prompt in browser.run("document.body.innerText") for prompt in PROMPTS)
        assert browser.run("document.querySelectorAll('svg path').length") >= 5

        at = "document.getElementById('at').textContent"
        student = "document.querySelectorAll('#pictures img')[1]"
        assert browser.run(at) == "step 40"
        color = f"""(() => {{ const canvas = document.createElement('canvas').getContext('2d');
            canvas.drawImage({student}, 0, 0);
            return canvas.getImageData(32, 32, 1, 1).data[0]; }})()"""
        assert browser.run(color) == 100
        browser.run("document.getElementById('slider').focus()")
        for kind in ("rawKeyDown", "keyUp"):
            key = {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37}
            browser.ask("Input.dispatchKeyEvent", type=kind, **key)
        browser.wait_for(f"{at} === 'step 20' && {loaded} && {color} === 80")

        # A new preview does not take away the one that is looked at; the newest is followed.
        draw_preview(folder, 60)
        write_rows(folder, [row(step) for step in range(41, 61)])
        browser.wait_for("document.getElementById('slider').max === '3'")
        assert browser.run(at) == "step 20"
        browser.run("slider.value = 3; slider.dispatchEvent(new Event('input'))")
        draw_preview(folder, 80)
        browser.wait_for(f"{at} === 'step 80'")
        assert "60 of 100" in browser.run("document.getElementById('status').innerText")
        assert browser.complaints == []
    if kept := os.environ.get("FEWSTEP_SHOTS"):
        shutil.copytree(shots, kept, dirs_exist_ok=True)
