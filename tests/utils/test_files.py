"""Files and folders are written whole or not at all, and damage to them is found."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import stat
from pathlib import Path

import pytest

from fewstep.utils.files import (
    damaged_files,
    read_json,
    read_text,
    replacing,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)
from refusals import refuses


def make_file(path):
    path.write_text("new")


def make_folder(path):
    path.mkdir()
    (path / "inside").write_text("new")


def content(path):
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("make", [make_file, make_folder])
@pytest.mark.parametrize("sync", [False, True])
def test_the_new_content_takes_the_name(make, sync, tmp_path):
    path = tmp_path / "deep" / "name"
    for _ in range(2):  # where there was nothing, and in the place of what is there
        with replacing(path, sync=sync) as temporary:
            make(temporary)
            assert not path.exists() or content(path) == "new"
        assert content(path) == "new"
        assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("make", [make_file, make_folder])
def test_an_error_leaves_the_old_content_and_nothing_else(make, tmp_path):
    path = tmp_path / "name"
    make(path)
    (path / "old" if path.is_dir() else tmp_path / "beside").write_text("old")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        make(temporary)
        raise RuntimeError
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_the_old_content(tmp_path):
    path = tmp_path / "name"
    write_text(path, "old")

    def half():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=half)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_get_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "name", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o640


def test_damage_is_found(tmp_path):
    names = ["cut", "flipped", "gone", "sound"]
    for name in names:
        write_bytes(tmp_path / name, name.encode() * 1000)
    sums = {name: sha256_of(tmp_path / name) for name in names}
    assert sums["cut"] == hashlib.sha256(b"cut" * 1000).hexdigest()
    assert damaged_files(tmp_path, sums) == []
    os.truncate(tmp_path / "cut", 2999)
    write_bytes(tmp_path / "flipped", b"f" + b"flipped" * 1000)
    (tmp_path / "gone").unlink()
    assert damaged_files(tmp_path, sums) == ["cut", "flipped", "gone"]


def test_json_comes_back_and_torn_json_is_none(tmp_path):
    write_json(tmp_path / "a.json", {"größe": [1, None, "x"]})
    assert read_json(tmp_path / "a.json") == {"größe": [1, None, "x"]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") is not None
    (tmp_path / "a.json").write_text('{"a": 1')
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "nothing.json") is None


def test_text_is_read_from_ordinary_files_of_a_bounded_size_only(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffein Bär".encode())
    (tmp_path / "link").symlink_to(file)
    assert read_text(file) == read_text(tmp_path / "link") == "ein Bär"
    assert read_text(file, at_most=file.stat().st_size) == "ein Bär"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "latin").write_bytes("Bär".encode("latin-1"))
    for path, code in (
        (tmp_path, "invalid"),
        (tmp_path / "pipe", "invalid"),
        (tmp_path / "latin", "invalid"),
        (Path("/dev/zero"), "invalid"),
        (Path("a\0b"), "invalid"),
        (tmp_path / "dangling", "missing-file"),
        (file / "below", "missing-file"),
        (tmp_path / ("n" * 300), "no-access"),
    ):
        with refuses(code, f"{path}: "):
            read_text(path)
    with refuses("out-of-range", f"{file}: "):
        read_text(file, at_most=file.stat().st_size - 1)
