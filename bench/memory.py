"""What each memory setting saves, measured: ``python bench/memory.py [--json] [--only NAME]``.

Each setting runs two iterations in a process of its own, on a random Stable Diffusion 3 of a size
where weights outweigh everything else. On a GPU the most that torch allocated counts, else the most
bytes of tensors that were alive at once: resident memory would tell of libraries and mapped files.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

HIDDEN, LAYERS = 384, 6
LORA = ["student.mode=lora", "student.lora.rank=8"]
ROLES = ("student", "fake_teacher", "teacher")
LOW = ["model.dtype=bfloat16"]
AGAIN = "student.gradient_checkpointing=true"
SETTINGS: dict[str, list[str]] = {
    "full": [],
    "full, checkpointing": [AGAIN],
    "full, checkpointing every 2nd": ["student.gradient_checkpointing=2"],
    "full, teacher bf16": ["memory.teacher_dtype=bfloat16"],
    "full, 8-bit moments": [f"{r}.optimizer.name=adamw8bit" for r in ("student", "fake_teacher")],
    "full, fp8 moments": [f"{r}.optimizer.name=adamwfp8" for r in ("student", "fake_teacher")],
    "full, bf16": LOW,
    "full, bf16 weights": [*LOW, "memory.trained_dtype=bfloat16"],
    "lora": LORA,
    "lora, nf4 base": [*LORA, "memory.base=nf4"],
    "lora, checkpointing": [*LORA, AGAIN],
    "lora, checkpointing, int8 base": [*LORA, AGAIN, "memory.base=int8"],
    "lora, checkpointing, fp8 base": [*LORA, AGAIN, "memory.base=fp8"],
    "lora, checkpointing, nf4 base": [*LORA, AGAIN, "memory.base=nf4"],
}
ON_GPU = {
    "full, moments on the host": ["memory.offload_optimizer=true"],
    "full, mean on the host": ["memory.offload_ema=true"],
    "full, VAE on the host": ["memory.offload_vae=true"],
}
"""They move memory to the host: without a GPU there is nothing to see."""


def build_model(folder: Path) -> None:
    """A random pipeline, written to a folder."""
    from fewstep.world.pipeline import Sizes, build

    sizes = Sizes(hidden=HIDDEN, heads=6, layers=LAYERS, clip=16, t5=32)
    build(0, sizes).save_pretrained(folder, safe_serialization=True)
    (folder / "prompts.txt").write_text("a red circle\na blue square\n", encoding="utf-8")


def measure(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Two iterations in this process; its memory in 1e6 bytes."""
    import torch
    from rich.console import Console

    from fewstep.config import Recipe, parse_recipe
    from fewstep.plan.live import LiveBytes
    from fewstep.randomness import Draws
    from fewstep.strict import apply_override
    from fewstep.train.loop import _batch
    from fewstep.train.run import build, check
    from fewstep.train.step import iteration

    data = {
        "model": {"path": str(folder), "options": {"max_sequence_length": 16}},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 1, "encode_ahead": True},
        "resolution": {"height": 64, "width": 64},
        "grid": {"name": "random", "max_steps": 2},
        "objectives": [{"name": "dm"}],
        "train": {"steps": 2},
        "student": {"every": 1},
        "preview": {"count": 1},
        "health": {"count": 1},
    }
    for override in overrides:
        apply_override(data, override, Recipe)
    recipe = parse_recipe(data)
    run = build(recipe, folder / "run", check(recipe), Console(file=io.StringIO()))
    with LiveBytes() as live:
        nets = {id(net): net for net in map(run.trainees.roles.net, ROLES)}
        for net in (*nets.values(), run.backbone.pipe.vae):
            live.watch(each for tensor in net.state_dict().values() for each in inner(tensor))
        if run.trainees.ema is not None:
            live.watch(run.trainees.ema.weights.values())
        for step in range(2):
            draws = Draws(0, step, run.backbone.device)
            iteration(run.trainees, _batch(run), draws, run.algorithm)
    if torch.cuda.is_available():
        return {"mb": torch.cuda.max_memory_allocated() / 1e6}
    return {"mb": live.peak / 1e6}


def inner(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold what a quantised one stands for; the tensor itself if it is plain."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [
        each for name in tensor.__tensor_flatten__()[0] for each in inner(getattr(tensor, name))
    ]


def hardware() -> str:
    """A short name of where this runs."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return name.lower().replace(" ", "-")


def main() -> None:
    """Measures all settings and writes bench/results/memory-<hardware>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--only", action="append", help="settings to measure; more than once")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = SETTINGS | ON_GPU
    if arguments.child:
        folder, name = Path(arguments.child), arguments.only[0]
        print(json.dumps(measure(folder, settings[name])))
        return
    place = hardware()
    settings = SETTINGS if place == "cpu" else settings
    names = [name for name in settings if not arguments.only or name in arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder))
        found = {}
        for name in names:
            command = [sys.executable, __file__, "--child", folder, "--only", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    for name, each in found.items():
        plain = found.get("lora" if name.startswith("lora") else "full")
        if plain is not None:
            each["ratio"] = round(each["mb"] / plain["mb"], 3)
    content = {"hardware": place, "hidden": HIDDEN, "layers": LAYERS, "settings": found}
    if not arguments.only:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        text = json.dumps(content, indent=1) + "\n"
        (results / f"memory-{place}.json").write_text(text, encoding="utf-8")
    if arguments.json:
        print(json.dumps(content))
    else:
        for name, each in found.items():
            print(f"{name:32} {each['mb']:8.0f} MB  x {each.get('ratio', float('nan')):.2f}")


if __name__ == "__main__":
    main()
