"""Loading a run whose networks are split over processes: a machine holds the weights once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.config import Recipe
from fewstep.train import distributed
from toyworld_training.pipeline import Sizes, build

WORKER = Path(__file__).with_name("loading_worker.py")


@pytest.mark.slow
def test_one_copy_a_machine(make_recipe, tmp_path, tell):
    """Beyond the shards, which on a processor are in the same memory."""
    sizes = Sizes(hidden=384, heads=6, layers=12, clip=16, t5=32)
    build(0, sizes).save_pretrained(tmp_path / "model", safe_serialization=True)
    recipe = make_recipe("parallel.shard=full", "ema=null", "data.batch_size=2")
    values = recipe.model_dump(mode="json")
    values["model"]["path"] = str(tmp_path / "model")
    file = tmp_path / "recipe.json"
    file.write_text(Recipe.from_values(values).model_dump_json(), encoding="utf-8")
    source = str(Path(distributed.__file__).parents[2])
    paths = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(WORKER), str(file), str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"memory-{rank}.json").read_text()) for rank in range(2)]
    weights = found[0]["weights"]
    beyond = sum(each["fullest"] - each["before"] - each["shards"] for each in found)
    told = f"loading {weights / 1e6:.0f} MB in two processes: {beyond / weights:.2f} copies beyond"
    tell(f"{told} the shards; each: {found}")
    assert beyond <= 1.4 * weights  # 35 MB in each process are no weights
