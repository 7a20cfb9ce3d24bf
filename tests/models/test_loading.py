"""What is refused when a model is opened: one line that says what to do."""

from __future__ import annotations

import json

import pytest

from fewstep import models
from fewstep.utils.errors import FewstepError


def test_sizes_that_do_not_fit_are_refused(pipeline_folder):
    backbone = models.load(pipeline_folder, max_sequence_length=16)
    with pytest.raises(FewstepError) as caught:
        backbone.latent_shape(60, 64)
    assert caught.value.code == "out-of-range"


def test_loading_mistakes_are_explained(tmp_path, pipeline_folder):
    with pytest.raises(FewstepError) as caught:
        models.load(tmp_path / "nowhere")
    assert caught.value.code == "missing-file"
    with pytest.raises(FewstepError) as caught:
        models.load(tmp_path)
    assert caught.value.code == "missing-file"
    with pytest.raises(FewstepError) as caught:
        models.load(pipeline_folder, max_sequence_lenght=3)
    assert caught.value.code == "unknown-name"
    with pytest.raises(FewstepError) as caught:
        models.load(pipeline_folder, dtype="float31")
    assert caught.value.code == "unknown-name"
    index = {"_class_name": "ShapEPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(FewstepError) as caught:
        models.load(tmp_path)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("open_it", [models.load, models.load_meta])
@pytest.mark.parametrize(
    ("option", "value"), [("t5", "off"), ("max_sequence_length", "16"), ("t5", 1)]
)
def test_options_of_the_wrong_type_are_refused(pipeline_folder, open_it, option, value):
    """A word such as `off` is true to Python, and would silently do the opposite."""
    with pytest.raises(FewstepError) as caught:
        open_it(pipeline_folder, **{option: value})
    assert caught.value.code == "invalid"
