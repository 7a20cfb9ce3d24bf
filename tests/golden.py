"""Golden runs: what short runs of the embedded pipeline came to when they were recorded.

    python tests/golden.py            measure again and print what differs from the recorded values
    python tests/golden.py --write    record (only for a change that is meant to alter results)

Everything goes through the command line, in processes of their own. A run is recorded by its
losses and gradient norms as exact numbers, and by the sha256 of every tensor of its last
checkpoint: weights, moments (the first moment after one update is the gradient) and average. Exact
equality can be asked for only where arithmetic is the same, so a fingerprint of this machine's
arithmetic is recorded too.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "golden" / "runs.json"
SOURCE = Path(__file__).parent.parent / "src"
CLOCK = {"seconds", "images_per_second", "memory_gb"}

PIPELINE = "package://fewstep.toyworld/data/pipeline"
FULL: dict[str, Any] = {
    "model": {"path": PIPELINE, "options": {"t5": False, "max_sequence_length": 1}},
    "data": {
        "prompts": "package://fewstep.toyworld/data/prompts/train.txt",
        "batch_size": 4,
        "encode_ahead": True,
    },
    "resolution": {"height": 64, "width": 64},
    "grid": {"name": "random", "max_steps": 4},
    "objectives": [
        {"name": "ca", "alpha": 4.0, "floor": 0.033, "weight": [[1, 1.0], [3, 0.3]]},
        {"name": "dm", "floor": 0.033},
        {"name": "cdm", "floor": 0.033},
    ],
    "fake_teacher": {"updates": 2, "target": {"x0": 1, "final": 2}, "optimizer": {"lr": 3.0e-4}},
    "student": {"mode": "full", "every": 1, "optimizer": {"lr": 1.0e-4}},
    "ema": {"max_decay": 0.98},
    "train": {"steps": 3, "warmup": 2, "cooldown": 0.5, "seed": 0, "device": "cpu"},
    "checkpoint": {"every": 3, "keep_last": 1, "keep_best": 0},
    "preview": {
        "every": 3,
        "prompts": "package://fewstep.toyworld/data/prompts/preview.txt",
        "count": 2,
        "teacher": {"steps": 2, "guidance": 2.0},
    },
    "health": {"every": 3, "count": 2, "sigmas": [0.3, 0.7]},
}
LORA: dict[str, Any] = FULL | {
    "objectives": [
        {"name": "ca", "alpha": 3.0},
        {"name": "dm"},
        {"name": "cdm"},
        {"name": "isg"},
    ],
    "fake_teacher": {"optimizer": {"lr": 1.0e-3}},
    "student": {
        "mode": "lora",
        "lora": {"rank": 2, "targets": ["attn.to_q", "attn.to_v"]},
        "every": 2,
        "optimizer": {"lr": 3.0e-4},
        "gradient_checkpointing": True,
    },
    "train": {"steps": 4, "warmup": 2, "seed": 1, "device": "cpu"},
    "checkpoint": {"every": 2, "keep_last": 2, "keep_best": 0},
}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "full, plain": (FULL, {"train": {"step": "plain"}}, 1),
    "full, fused": (FULL, {}, 1),
    "full, fused, in parts": (
        FULL,
        {
            "train": {"batch_teachers": False},
            "fake_teacher": {"target": {"x0": 1.0}},
            "data": {"accumulate": 2},
        },
        1,
    ),
    "full, fused, 2 processes": (FULL, {}, 2),
    "full, fused, 2 processes, sharded": (FULL, {"parallel": {"shard": "full"}}, 2),
    "lora, plain": (LORA, {"train": {"step": "plain"}}, 1),
    "lora, fused": (LORA, {}, 1),
    "lora, fused, 2 processes": (LORA, {}, 2),
}
"""Name -> recipe, what differs from it, processes."""


def recipe_of(name: str) -> dict[str, Any]:
    base, changes, _ = RUNS[name]
    merged = json.loads(json.dumps(base))
    for section, values in changes.items():
        merged[section] = merged.get(section, {}) | values
    return merged


def arithmetic() -> str:
    """Fingerprint of what matrix products, attention, convolutions and exp round to here."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rng = torch.Generator().manual_seed(0)
        a = torch.randn(96, 128, generator=rng)
        b = torch.randn(128, 384, generator=rng)
        image = torch.randn(1, 16, 24, 24, generator=rng)
        kernel = torch.randn(32, 16, 3, 3, generator=rng)
        q = (a @ b)[:48].reshape(1, 4, 48, 96)
        found = [
            a @ b,
            torch.nn.functional.scaled_dot_product_attention(q, q, q),
            torch.nn.functional.conv2d(image, kernel),
            torch.exp(a),
            torch.nn.functional.gelu(b, approximate="tanh"),
            torch.nn.functional.layer_norm(a, (128,)),
        ]
    finally:
        torch.set_num_threads(threads)
    total = hashlib.sha256(torch.__version__.partition("+")[0].encode())
    for each in found:
        total.update(each.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def launch(recipe: dict[str, Any], folder: Path, processes: int, *more: str) -> None:
    """One `fewstep distill` in a process of its own, or in several under torchrun."""
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m"]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command += ["torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--master-addr", "127.0.0.1", "--master-port", port, "-m"]
    command += ["fewstep", "distill", str(file), "--out", str(folder), *more]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{run.stdout[-2000:]}{run.stderr[-20000:]}")


def read_run(folder: Path) -> dict[str, Any]:
    """Losses of every step, and the sha256 of every tensor of the last checkpoint."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
    last = max((folder / "checkpoints").glob("step-*"))
    return {"metrics": metrics, "tensors": tensors_of(last)}


def tensors_of(checkpoint: Path) -> dict[str, str]:
    from safetensors import safe_open

    found: dict[str, str] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            for key in opened.keys():  # noqa: SIM118
                array = opened.get_tensor(key)
                digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
                found[f"{file.stem}/{key}"] = digest
    return found


def measure(name: str) -> dict[str, Any]:
    """A run as it comes out now; of its tensors one fingerprint a file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        launch(recipe_of(name), folder, RUNS[name][2])
        return condensed(read_run(folder))


def condensed(run: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, list[str]] = {}
    for key, digest in sorted(run["tensors"].items()):
        group, _, name = key.partition("/")
        files.setdefault(group, []).append(f"{name} {digest}")
    sums = {
        group: {
            "tensors": len(lines),
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        }
        for group, lines in files.items()
    }
    return {"metrics": run["metrics"], "files": sums}


def main() -> None:
    names = list(RUNS)
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(measure, names), strict=True))
    content = {"arithmetic": arithmetic(), "runs": found}
    if "--write" in sys.argv:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    print("arithmetic", "same" if recorded["arithmetic"] == content["arithmetic"] else "other")
    for name in names:
        print(name, "same" if recorded["runs"][name] == found[name] else "DIFFERENT")


if __name__ == "__main__":
    main()
