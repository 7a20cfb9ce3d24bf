"""What each memory setting saves, measured: ``python bench/memory.py [--json] [--only NAME]``.

Each setting runs two iterations in a process of its own, on a random Stable Diffusion 3: of a size
where weights outweigh everything else, or, "on 4 pictures", where activations do. On a GPU the most
that torch allocated counts, else the most bytes of tensors that were alive at once: resident memory
would count libraries and mapped files.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import paths  # noqa: F401
import torch
from step import hardware_name

from fewstep.utils.hardware import describe

HIDDEN, LAYERS = 384, 6
NEVER = 10**6
LORA = ["student.mode=lora", "student.lora.rank=8"]
ROLES = ("student", "fake_teacher", "teacher")
LOW = ["model.dtype=bfloat16"]
AGAIN = "student.gradient_checkpointing=true"
SMALL = [*LORA, *LOW]
MANY = [
    *SMALL,
    "data.batch_size=4",
    "resolution={height: 128, width: 128}",
    "objectives=[{name: ca}, {name: dm}, {name: cdm}]",
]
SETTINGS: dict[str, list[str]] = {
    "full": [],
    "full, checkpointing": [AGAIN],
    "full, bf16 teacher": ["memory.teacher_dtype=bfloat16"],
    "full, 8-bit moments": [f"{r}.optimizer.name=adamw8bit" for r in ("student", "fake_teacher")],
    "full, fp8 moments": [f"{r}.optimizer.name=adamwfp8" for r in ("student", "fake_teacher")],
    "full, no mean": ["ema=null"],
    "full, bf16": LOW,
    "full, bf16, checkpointing": [*LOW, AGAIN],
    "full, bf16, bf16 weights": [*LOW, "memory.trained_dtype=bfloat16"],
    "lora": LORA,
    "lora, bf16": SMALL,
    "lora, bf16, nf4 base": [*SMALL, "memory.base=nf4"],
    "lora, bf16, checkpointing": [*SMALL, AGAIN],
    "lora, bf16, checkpointing, int8 base": [*SMALL, AGAIN, "memory.base=int8"],
    "lora, bf16, checkpointing, fp8 base": [*SMALL, AGAIN, "memory.base=fp8"],
    "lora, bf16, checkpointing, nf4 base": [*SMALL, AGAIN, "memory.base=nf4"],
    "on 4 pictures": MANY,
    "on 4 pictures, checkpointing": [*MANY, AGAIN],
    "on 4 pictures, checkpointing every 2nd": [*MANY, "student.gradient_checkpointing=2"],
    "on 4 pictures, accumulate 2": [*MANY, "data.accumulate=2"],
    "on 4 pictures, accumulate 4": [*MANY, "data.accumulate=4"],
    "on 4 pictures, one graph": [*MANY, "train.batch_teachers=false"],
    "on 4 pictures, one graph, checkpointing": [*MANY, "train.batch_teachers=false", AGAIN],
}
"""Each is compared with the first of its kind, and with what it is without its last part."""
ON_GPU = {
    "full, moments on the host": ["memory.offload_optimizer=true"],
    "full, mean on the host": ["memory.offload_ema=true"],
    "full, VAE on the host": ["memory.offload_vae=true"],
}
"""They move memory to the host: without a GPU there is nothing to see."""


def build_model(folder: Path) -> None:
    """A random pipeline, written to a folder."""
    from toyworld_training.pipeline import Sizes, build

    sizes = Sizes(hidden=HIDDEN, heads=6, layers=LAYERS, clip=16, t5=32)
    build(0, sizes).save_pretrained(folder, safe_serialization=True)
    (folder / "prompts.txt").write_text("a red circle\na blue square\n", encoding="utf-8")


def measure(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Two iterations in this process; its memory in 1e6 bytes."""
    from rich.console import Console

    from fewstep.config import Recipe
    from fewstep.planning.memory_tracker import MemoryTracker
    from fewstep.train.trainer import Trainer

    data = {
        "model": {"path": str(folder), "options": {"max_sequence_length": 16}},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 1, "encode_ahead": True},
        "resolution": {"height": 64, "width": 64},
        "grid": {"name": "random", "max_steps": 2},
        "objectives": [{"name": "dm"}],
        "train": {"steps": 4},
        "student": {"every": 1},
        "preview": {"every": NEVER, "count": 1, "teacher": {"steps": 1}},
        "checkpoint": {"every": NEVER},
        "health": {"every": NEVER, "count": 1},
    }
    recipe, console = Recipe.from_values(data, overrides), Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as out, Trainer(recipe, out, console=console) as trainer:
        trainer.step()  # also draws a preview, which is not to be counted
        run = trainer.state
        state = run.train_state
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with MemoryTracker() as tracker:
            nets = {id(net): net for net in map(state.roles.net, ROLES)}
            for net in (*nets.values(), run.backbone.pipe.vae):
                tracker.watch(net.state_dict().values())
            for optimizer in state.optimizers.values():
                tracker.watch(optimizer.tensors().values())
            if state.ema is not None:
                tracker.watch(state.ema.weights.values())
            for _ in range(2):
                trainer.step()
        if torch.cuda.is_available():
            return {"mb": torch.cuda.max_memory_allocated() / 1e6}
    return {"mb": tracker.peak / 1e6}


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
    settings = settings if torch.cuda.is_available() else SETTINGS
    names = [name for name in settings if not arguments.only or name in arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder))
        results = {}
        for name in names:
            command = [sys.executable, __file__, "--child", folder, "--only", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
    for name, result in results.items():
        *without, _ = name.split(", ")
        for key, other in (("ratio", name.split(", ")[0]), ("last", ", ".join(without))):
            if other in results:
                result[key] = round(result["mb"] / results[other]["mb"], 3)
    hardware = describe()
    content = {"hardware": hardware, "hidden": HIDDEN, "layers": LAYERS, "settings": results}
    if not arguments.only:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        text = json.dumps(content, indent=1) + "\n"
        (folder / f"memory-{hardware_name(hardware)}.json").write_text(text, encoding="utf-8")
    if arguments.json:
        print(json.dumps(content))
    else:
        for name, result in results.items():
            ratios = [f"{key} x {result[key]:.2f}" for key in ("ratio", "last") if key in result]
            print(f"{name:40} {result['mb']:8.0f} MB", *ratios, sep="  ")


if __name__ == "__main__":
    main()
