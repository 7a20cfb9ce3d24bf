"""What tests ask of exported folders: their cards, what these draw, and what we draw."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import torch
import yaml
from PIL import Image

from fewstep.inference.load import open_model
from fewstep.inference.sample import Sampler, sample_images, write_samples

PROMPT = "small red circle left"  # what the snippet draws: the run's first prompt


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata_of(folder):
    return yaml.safe_load(card_of(folder).split("---\n")[1])


def run_snippets(*folders, beside=()):
    """Runs cards' Python as it stands, in a process without network or fewstep; their pictures.

    Each runs beside the files of its export, and beside other folders, such as its teacher's.
    """
    places = []
    for folder in folders:
        places.append(folder.parent / "elsewhere")
        places[-1].mkdir()
        for path in (*folder.iterdir(), *beside):
            (places[-1] / path.name).symlink_to(path)
        code = re.search(r"```python\n(.*?)```", card_of(folder), re.DOTALL)[1]
        (places[-1] / "snippet.py").write_text(code, encoding="utf-8")
    run_each = (
        "import os, runpy, sys\n"
        "for place in sys.argv[1:]:\n    os.chdir(place)\n    runpy.run_path('snippet.py')\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", run_each, *map(str, places)]
    subprocess.run(command, env=env, check=True, timeout=300)
    for place in places:
        with Image.open(place / "image.png") as image:
            yield np.array(image)


def sample(model):
    """Four steps at full precision, before rounding to pixels."""
    return sample_images(model.backbone, model.net, [PROMPT])


def pixels_of_sample(place, out, **options):
    model = open_model(place, **options)
    [row] = write_samples(model, [PROMPT], out, sampler=Sampler.of(model), seed=0)
    with Image.open(out / row["file"]) as image:
        return np.array(image)
