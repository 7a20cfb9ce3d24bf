"""Pushing an export, to a stand-in of the Hugging Face Hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fewstep.cli.entry import run as command
from fewstep.export.push import Push
from fewstep.inference.load import export_model
from refusals import names_in, refuses

REPO = "someone/turbo"
HOME = "/".join(["", "home", "alice"])


class Hub:
    """What the hub keeps: repos, large files by their SHA-256, files of commits; and its moods."""

    def __init__(self):
        self.private, self.large, self.files = {}, {}, {}
        self.token, self.uploads, self.fail_after = "right", 0, None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200, **headers):
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        name = self.path.split("?")[0].removeprefix("/api/models/")
        if name not in self.server.hub.private:
            self.answer({"error": "none"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return
        private = self.server.hub.private[name]
        self.answer({"id": name, "private": private, "sha": "0" * 40, "siblings": [], "tags": []})

    def do_PUT(self):
        hub, content = self.server.hub, self.body()
        hub.uploads += 1
        if hub.fail_after is not None and hub.uploads > hub.fail_after:
            self.answer({"error": "gone"}, 403)
            return
        hub.large[self.path.rpartition("/")[2]] = content
        self.answer({})

    def do_POST(self):
        hub, content = self.server.hub, self.body()
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            modes = {True: "lfs", False: "regular"}
            rows = [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self.answer({"files": rows})
        elif self.path.endswith("/lfs/objects/batch"):
            host = f"http://{self.headers['Host']}"
            rows = [
                each
                if each["oid"] in hub.large
                else {**each, "actions": {"upload": {"href": f"{host}/lfs/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.answer({"objects": rows, "transfer": "basic"})
        else:
            self.commit(content)

    def create(self, wanted):
        hub, name = self.server.hub, f"{wanted['organization']}/{wanted['name']}"
        exists = name in hub.private
        hub.private.setdefault(name, wanted.get("visibility") == "private")
        url = f"http://{self.headers['Host']}/{name}"
        self.answer({"url": url, "name": name}, 409 if exists else 200)

    def commit(self, content):
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.hub.files[value["path"]] = self.server.hub.large[value["oid"]]
        url = f"http://{self.headers['Host']}/{REPO}/commit/{'0' * 40}"
        self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})


@pytest.fixture
def hub(monkeypatch):
    """A hub that huggingface_hub talks to, as with HF_ENDPOINT, HF_TOKEN and without Xet."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "right")
    yield server.hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_everything_arrives_and_the_card_names_the_repo(hub, make_run):
    run = make_run("lora")
    out = export_model(run)
    assert Push.prepare(run, REPO).send().endswith(REPO)
    assert hub.private == {REPO: True}
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert hub.files.keys() == written
    for name in written - {"README.md"}:
        assert hub.files[name] == (out / name).read_bytes()
    card = hub.files["README.md"].decode()
    assert f"load_lora_weights('{REPO}'" in card and "'.'" not in card and '"."' not in card
    assert Push.prepare(run, "someone/open", public=True).send() and not hub.private["someone/open"]


def test_a_dry_run_lists_what_would_be_sent(hub, make_run, capsys):
    run = make_run("lora")
    out = export_model(run)
    assert command(["push", str(run), REPO, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"]["README.md"] == (out / "README.md").stat().st_size
    assert told["public"] is False and told["url"] is None
    assert not hub.private and not hub.files


def test_what_has_arrived_is_not_sent_again(hub, make_run):
    run = make_run("lora")
    export_model(run)
    hub.fail_after = 1
    with refuses("no-access", REPO):
        Push.prepare(run, REPO).send()
    assert not hub.files
    arrived, hub.fail_after, before = set(hub.large), None, hub.uploads
    Push.prepare(run, REPO).send()
    sent = hub.uploads - before
    assert hub.files and sent + len(arrived) == len(hub.large)
    assert all(hashlib.sha256(content).hexdigest() == oid for oid, content in hub.large.items())


def test_what_is_wrong_is_one_line(hub, make_run, monkeypatch):
    run = make_run("lora")
    with refuses("missing-input", run):
        Push.prepare(run, REPO)
    export_model(run)
    with refuses("usage", "turbo"):
        Push.prepare(run, "turbo")
    hub.private[REPO] = False  # somebody's, seen by everybody
    with refuses("exists", REPO):
        Push.prepare(run, REPO).send()
    hub.private.clear()
    hub.token = "another"
    with refuses("no-access", REPO) as caught:
        Push.prepare(run, REPO).send()
    assert "HF_TOKEN" in names_in(caught.value) and not hub.files
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refuses("no-access", REPO):
        Push.prepare(run, REPO).send()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "my token is hf_abcdefghijklmnopqrstuvwxyz\n"),
        ("README.md", f"see {HOME}/models/base\n"),
        ("README.md", "see C:\\Users\\alice\\base\n"),
        ("note.txt", "https://alice:hunter2@example.org\n"),
        ("my-secret.txt", "x"),
    ],
)
def test_secrets_and_paths_stay_here(make_run, name, text):
    run = make_run("lora")
    out = export_model(run)
    (out / ".env").write_text("hidden files are not sent")
    assert ".env" not in Push.prepare(run, REPO).files
    (out / name).write_text(text, encoding="utf-8")
    with refuses("invalid", out / name) as caught:
        Push.prepare(run, REPO)
    told = " ".join(names_in(caught.value))
    assert "hunter2" not in told and "hf_abc" not in told
