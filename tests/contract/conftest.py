"""Every tiny pipeline, loaded once a file; and that of the page that says how to add a family."""

from __future__ import annotations

import importlib

import pytest
from diffusers import DiffusionPipeline

from documented import install_family
from fewstep import models
from tiny import discover

TINY = discover()
DOCUMENTED = "ovis-of-the-docs"


@pytest.fixture(scope="module", params=[*sorted(TINY), DOCUMENTED])
def tiny(request, tmp_path_factory):
    if request.param != DOCUMENTED:
        yield TINY[request.param]
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install_family(tmp_path_factory.mktemp("documented")))
        yield importlib.import_module("documented_twin").ovis


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp(tiny.name) / "pipeline"
    tiny.build(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tiny, folder):
    loaded = models.load(folder, **tiny.options)
    assert loaded.name == tiny.family
    return loaded


@pytest.fixture(scope="module")
def pipe(tiny, backbone, folder):
    """The stock pipeline, with the scheduler that a student needs."""
    missing = backbone.load_overrides(folder, **tiny.options)
    pipe = DiffusionPipeline.from_pretrained(folder, **missing)
    pipe.set_progress_bar_config(disable=True)
    if scheduler := backbone.student_scheduler():
        pipe.scheduler = scheduler
    return pipe
