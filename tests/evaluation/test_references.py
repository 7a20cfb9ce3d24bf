"""Real pictures to compare with."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fewstep.evaluation import references
from fewstep.utils.errors import FewstepError


@pytest.fixture
def folder(tmp_path):
    """Three pictures of one colour each, of other shapes than wanted, and a text."""
    (tmp_path / "deep").mkdir()
    for name, size, colour in (
        ("a.png", (90, 30), (255, 0, 0)),
        ("b.jpg", (30, 90), (0, 255, 0)),
        ("deep/c.webp", (40, 40), (0, 0, 255)),
    ):
        Image.new("RGB", size, colour).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_gives_all_its_pictures_at_the_wanted_size(folder):
    images = torch.cat(list(references.load(f"folder:{folder}").draw((), 0, (24, 32))))
    assert images.shape == (3, 3, 24, 32)
    assert images.mean((2, 3)).argmax(1).tolist() == [0, 1, 2]
    assert images.min() >= 0 and images.max() <= 1


def test_what_cannot_serve_is_refused(folder, tmp_path):
    for text, code in (
        ("folder", "invalid"),
        (f"folder:{folder / 'deep'}", "missing-file"),
        (f"folder:{folder / 'nowhere'}", "missing-file"),
        ("foldr:x", "unknown-name"),
    ):
        with pytest.raises(FewstepError) as refused:
            references.load(text)
        assert refused.value.code == code
    (folder / "d.png").write_bytes(b"torn")
    with pytest.raises(FewstepError) as refused:
        list(references.load(f"folder:{folder}").draw((), 0, (8, 8)))
    assert refused.value.code == "damaged"
