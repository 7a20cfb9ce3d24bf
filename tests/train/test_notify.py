"""A message when a run has ended: it arrives, cannot harm the run, and its address is a secret."""

from __future__ import annotations

import io
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from fewstep.train import distill
from fewstep.train.checkpoint import store
from fewstep.train.monitor.sinks import make_sink
from fewstep.utils.errors import FewstepError
from plugin import make_plugin
from refusals import names_in, refuses

FEW = ("train.steps=2", "checkpoint.every=2", "preview.every=2", "health.every=2")
SECRET = "s3cr3t-path"
SINK = """
import json

class Sink:
    def open(self, folder, config, *, after):
        (folder / "sink.json").write_text(json.dumps(config))

    def write(self, step, scalars, pictures):
        pass

    def close(self):
        pass
"""


@pytest.fixture
def hook():
    """A server on this machine: its address, and what was posted; `?N` is answered with code N."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, self.headers["Content-Type"], json.loads(body)))
            code = int(self.path.partition("?")[2] or 200)
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{SECRET}", posted
        server.shutdown()
        thread.join()


def train(recipe, folder, **settings) -> str:
    console = Console(file=io.StringIO(), width=300)
    distill(recipe, folder, console=console, **settings)
    return console.file.getvalue()


def test_a_finished_run_tells_and_writes_its_address_nowhere(
    hook, make_recipe, tmp_path, monkeypatch, caplog
):
    address, posted = hook
    points = {"fewstep.sinks": {"keeping": "keeping_sink:Sink"}}
    modules = {"keeping_sink.py": SINK}
    monkeypatch.syspath_prepend(make_plugin(tmp_path / "plugin", points, modules))
    folder = tmp_path / "run"
    recipe = make_recipe(*FEW, f"log.notify={address}", "log.sinks=[keeping]")
    told = train(recipe, folder)
    [(path, kind, message)] = posted
    assert (path, kind) == (f"/{SECRET}", "application/json")
    assert (message["event"], message["step"], message["steps"]) == ("finished", 2, 2)
    assert "run finished" in message["text"] and message["error"] is None
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert (folder / "sink.json") in files
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in told + caplog.text + repr(recipe)

    train(type(recipe).of_run(folder), folder, resume=True)
    assert len(posted) == 1 and len(caplog.records) == 1, "it is no longer known, and that is said"

    monkeypatch.setenv("MY_HOOK", address)
    train(make_recipe(*FEW, "log.notify=$MY_HOOK"), tmp_path / "named")
    assert len(posted) == 2
    assert "notify: $MY_HOOK" in (tmp_path / "named" / "config.yaml").read_text()


def test_a_run_that_fails_tells_why_and_fails_as_before(hook, make_recipe, tmp_path):
    address, posted = hook
    rates = ("student.optimizer.lr=1", "fake_teacher.optimizer.lr=1", "train.warmup=0")
    wild = make_recipe(*FEW, *rates, "train.steps=60", "health.every=1", f"log.notify={address}")
    with pytest.raises(FewstepError) as failed:
        train(wild, tmp_path / "run")
    assert failed.value.code in ("diverged", "non-finite")
    [(_, _, message)] = posted
    assert message["event"] == "failed"
    assert message["error"] and names_in(message["error"]) <= names_in(failed.value)

    with pytest.raises(FewstepError):
        train(wild, tmp_path / "run")
    assert len(posted) == 1, "what was refused before it began is no run that failed"


@pytest.mark.parametrize("answer", ["404", "302", "500", None])
def test_an_address_that_does_not_take_it_is_one_warning(
    answer, hook, make_recipe, tmp_path, caplog
):
    address, posted = hook
    to = f"{address}?{answer}" if answer else f"http://127.0.0.1:9/{SECRET}"
    train(make_recipe(*FEW, f"log.notify={to}"), tmp_path / "run")
    assert store.listed(tmp_path / "run" / "checkpoints")
    [record] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "log.notify" in record.getMessage() and SECRET not in record.getMessage()
    assert len(posted) == bool(answer), "nothing is sent on to another address"


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/x", "ftp://example.com", "https:///x", "https://user:word@example.com/",
        "file:///etc/passwd", "https://exa mple.com", "http://127.0.0.1.example.com/", "hook",
        "https://example.com:99999/",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_and_not_shown(address, make_recipe):
    with refuses("config", "log.notify") as refused:
        make_recipe(f"log.notify={address}")
    assert address not in names_in(refused.value)


def test_a_variable_that_is_not_set_is_refused_before_anything_is_written(
    make_recipe, tmp_path, monkeypatch
):
    monkeypatch.delenv("MY_HOOK", raising=False)
    with refuses("missing-input", "log.notify"):
        train(make_recipe("log.notify=$MY_HOOK"), tmp_path / "run")
    monkeypatch.setenv("MY_HOOK", "http://example.com")
    with refuses("config", "log.notify"):
        train(make_recipe("log.notify=$MY_HOOK"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": "abc"},
        {"init": {"settings": [{"token": "abc"}]}},
        {"tracking_uri": "https://me:word@example.com"},
    ],
)
def test_secrets_in_the_settings_of_a_sink_are_refused_and_variables_are_not(
    settings, monkeypatch, tmp_path
):
    source = "class Sink:\n    def __init__(self, **settings):\n        self.settings = settings\n"
    ends = {"fewstep.sinks": {"taking": "taking_sink:Sink"}}
    plugin = make_plugin(tmp_path / "plugin", ends, {"taking_sink.py": source})
    monkeypatch.syspath_prepend(plugin)
    with refuses("config", "log.sinks: taking") as refused:
        make_sink("taking", settings)
    assert not {"abc", "https://me:word@example.com"} & names_in(refused.value)
    monkeypatch.setenv("MY_KEY", "abc")
    made = make_sink("taking", {"api_key": "$MY_KEY", "init": {"mode": "online"}})
    assert made.settings == {"api_key": "abc", "init": {"mode": "online"}}
    with refuses("missing-input", "log.sinks: taking"):
        make_sink("taking", {"api_key": "$NOT_SET_ANYWHERE"})
