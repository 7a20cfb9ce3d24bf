"""What the command line sets for libraries that read the environment."""

from __future__ import annotations

import os

import pytest

from fewstep import cli


@pytest.mark.parametrize("own", [None, "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_on_cuda_grows_by_segments_unless_you_say_otherwise(own, monkeypatch, capsys):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch 2.11 reads the second one
    for name in names:
        monkeypatch.setenv(name, "backend:native")
        if name != own:
            monkeypatch.delenv(name)
    assert cli.run(["models", "--json"]) == 0
    wanted = {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"} if own else dict.fromkeys(
        names, "expandable_segments:True")  # fmt: skip
    assert {name: os.environ[name] for name in names if name in os.environ} == wanted
