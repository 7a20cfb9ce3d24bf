"""Several processes are one: the same losses and weights, checkpoints for any number of them.

Real processes under torchrun, on a tiny real pipeline. One launch makes many runs: starting costs.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from fewstep.config import Recipe
from fewstep.config.parallel import ParallelRecipe
from fewstep.inference.runs import RunFolder
from fewstep.train import distill, distributed
from fewstep.train.checkpoint import store
from fewstep.train.monitor.sinks.metrics_file import METRICS, last_step

WORKER = Path(__file__).with_name("parallel_worker.py")
TRAFFIC = Path(__file__).with_name("traffic_worker.py")
STEPS, CLOCK = 2, ("seconds", "images_per_second", "memory_gb", "evaluations")
LORA = ("student.mode=lora", "student.lora.rank=4")
FULL = "parallel.shard=full"
HYBRID = ("parallel.shard=hybrid", "parallel.replicate=2")
CASES = {
    "full": (),
    "full, sharded": (FULL, "data.accumulate=4", "student.gradient_checkpointing=true"),
    "lora": (*LORA, "data.encode_ahead=true"),
    "lora, sharded": (*LORA, FULL),
}
FOUR = {"full": HYBRID, "lora": (*LORA, *HYBRID)}
LOW = ("model.dtype=bfloat16", FULL, "student.gradient_checkpointing=true")
SMALL = ("data.batch_size=4", "grid.max_steps=3", "checkpoint.every=1", "preview.every=1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(processes: int, *command: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    source = str(Path(distributed.__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    place = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return subprocess.Popen(
        [*launcher, *place, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass
class Job:
    """A run of all the processes.

    Attributes:
        die: Step in whose checkpoint a process is killed; only for the last job of a launch.
        delay: Step whose checkpoint one process writes late.
    """

    recipe: Recipe
    folder: Path
    resume: bool = False
    die: int = 0
    delay: int = 0


def run_all(processes: int, jobs: list[Job], folder: Path) -> str:
    """Makes some runs, each with all the processes; `folder` takes the list of jobs."""
    content = [
        vars(job)
        | {
            "recipe": job.recipe.model_dump(mode="json"),
            "folder": str(job.folder),
            "port": free_port(),
        }
        for job in jobs
    ]
    (folder / "jobs.json").write_text(json.dumps(content), encoding="utf-8")
    process = torchrun(processes, str(WORKER), str(folder / "jobs.json"))
    output, _ = process.communicate(timeout=1200)
    assert (process.returncode == 0) == (not jobs[-1].die), output
    return output


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def recipe_of(make_recipe, overrides, steps: int = STEPS):
    plain = [each for each in overrides if not each.startswith("parallel")]
    extra = [each for each in overrides if each.startswith("parallel")]
    return make_recipe(*SMALL, f"train.steps={steps}", "train.warmup=1", *plain, *extra)


def assert_close(one: Path, other: Path, step: int = STEPS) -> None:
    """Equal to float32 rounding: every tensor of a checkpoint, every figure of every step.

    Adam divides by the gradient's size, so that rounding moves a weight whose gradient is nearly 0
    by some hundredths of the step of 1e-3; the gradients (first moments) agree to 1e-6.
    """
    name = f"step-{step:08d}"
    a, b = (store.load(each / "checkpoints" / name) for each in (one, other))
    assert a.groups.keys() == b.groups.keys()
    for group, tensors in a.groups.items():
        assert tensors.keys() == b.groups[group].keys()
        moved = 1e-6 if group == "optimizers" else 2e-4
        for key, tensor in tensors.items():
            torch.testing.assert_close(b.groups[group][key], tensor, rtol=1e-4, atol=moved)
    for key in ("step", "updates", "prompt_cursor"):
        assert a.state[key] == b.state[key]
    lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (one, other)]
    for x, y in zip(*lines, strict=True):
        first, second = json.loads(x), json.loads(y)
        assert first.keys() == second.keys()
        for key in first.keys() - set(CLOCK):
            assert second[key] == pytest.approx(first[key], rel=1e-3, abs=1e-5), key


@pytest.fixture(scope="module")
def alone(make_recipe, tmp_path_factory):
    """``alone(case)``: the run of one process, made once; sharding does not count."""
    folders: dict[tuple, Path] = {}

    def get(overrides) -> Path:
        key = tuple(each for each in overrides if not each.startswith("parallel"))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("alone") / "run"
            distill(recipe_of(make_recipe, key), folders[key], console=quiet())
        return folders[key]

    return get


@pytest.fixture(scope="module")
def four(make_recipe, tmp_path_factory):
    """Mode -> folder of a run that four processes began: two groups of two, each with a copy."""
    root = tmp_path_factory.mktemp("four")
    folders = {mode: root / mode for mode in FOUR}
    run_all(4, [Job(recipe_of(make_recipe, FOUR[m]), folders[m]) for m in FOUR], root)
    return folders


@pytest.fixture(scope="module")
def killed(make_recipe, tmp_path_factory):
    """Folder of a run with a process that was killed while it wrote the last checkpoint."""
    root = tmp_path_factory.mktemp("killed")
    run_all(2, [Job(recipe_of(make_recipe, (FULL,)), root / "run", die=STEPS)], root)
    return root / "run"


@pytest.fixture(scope="module")
def two(make_recipe, alone, four, killed, tmp_path_factory):
    """Name -> folder of a run that two processes made or resumed, all in one launch."""
    root = tmp_path_factory.mktemp("two")
    folders = {case: root / case.replace(", ", "-") for case in CASES}
    jobs = [Job(recipe_of(make_recipe, CASES[case]), folders[case]) for case in CASES]

    def add(name: str, overrides: tuple[str, ...], steps: int = STEPS, *, start=None, delay=0):
        folders[name] = root / name.replace(", ", "-")
        if start is not None:
            shutil.copytree(start, folders[name])
        recipe = recipe_of(make_recipe, overrides, steps)
        jobs.append(Job(recipe, folders[name], start is not None, delay=delay))

    add("low", LOW)
    add("slow disk", (FULL,), delay=1)
    add("resumed killed", (FULL,), start=killed, delay=STEPS)
    for case in ("full, sharded", "lora, sharded"):  # 1 -> 2: two steps alone, two together
        add(f"resumed {case}", CASES[case], STEPS + 2, start=alone(CASES[case]))
    for mode, overrides in (("full", (FULL,)), ("lora", (*LORA, FULL))):  # 4 -> 2
        add(f"resumed four {mode}", overrides, STEPS + 1, start=four[mode])
    output = run_all(2, jobs, root)
    assert output.count("2 processes") == len(jobs), "only the first process prints"
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, two, alone):
    """Also in the first checkpoint, which is written while the second step moves the weights."""
    for step in range(1, STEPS + 1):
        assert_close(alone(CASES[case]), two[case], step)
        path = two[case] / "checkpoints" / f"step-{step:08d}"
        state = store.read_state(path)
        assert state["format"] == store.SHARDED
        if case == "full, sharded":
            sizes = [(path / name).stat().st_size for name in state["files"]]
            assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full, sharded", "lora, sharded"])
def test_another_number_of_processes_goes_on(case, two, make_recipe, tmp_path):
    """1 -> 2 in the fixture and 2 -> 1 here: both ways lead to the same place."""
    folder = tmp_path / "run"
    shutil.copytree(two[case], folder)
    recipe = recipe_of(make_recipe, CASES[case], STEPS + 2)
    distill(recipe, folder, resume=True, console=quiet())
    assert_close(folder, two[f"resumed {case}"], STEPS + 2)


@pytest.mark.slow
def test_bfloat16_computes_over_float32_shards(two, alone):
    """Losses as of one process to bfloat16's rounding; whatever is trained stays float32."""
    saved = store.load(store.find(two["low"], "last"))
    kinds = {tensor.dtype for group in saved.groups.values() for tensor in group.values()}
    assert kinds == {torch.float32}
    files = [(folder / METRICS).read_text().splitlines() for folder in (alone(LOW), two["low"])]
    one, other = (json.loads(lines[-1]) for lines in files)
    losses = [key for key in one if key.startswith(("loss/", "grad_norm/"))]
    assert len(losses) == 6
    for key in losses:
        assert other[key] == pytest.approx(one[key], rel=0.02), key


@pytest.mark.slow
def test_the_pieces_are_a_student(two):
    """What several processes saved can be sampled and exported like any other run."""
    run = RunFolder.open(two["full, sharded"])
    student = run.load_student(run.load_backbone(), "last")
    whole = store.load(store.find(run.folder, "last")).groups["ema"]
    for name, parameter in student.net.named_parameters():
        assert torch.equal(parameter, whole[name])


@pytest.mark.slow
def test_a_damaged_piece_is_noticed(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two["full"], folder)
    path = store.find(folder, "last")
    piece = sorted(path.glob("*.safetensors"))[-1]
    piece.write_bytes(piece.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(store.BrokenCheckpointError) as refused:
        store.load(path)
    assert refused.value.code == "damaged"


@pytest.mark.slow
@pytest.mark.parametrize("mode", FOUR)
def test_four_processes_and_then_two_or_one(mode, four, two, alone, make_recipe, tmp_path):
    """Four begin; whether two go on from their shards or one does, the end is the same."""
    assert_close(alone(FOUR[mode]), four[mode])
    shutil.copytree(four[mode], tmp_path / "run")
    recipe = recipe_of(make_recipe, FOUR[mode], STEPS + 1)
    single = recipe.model_copy(update={"parallel": ParallelRecipe()})
    distill(single, tmp_path / "run", resume=True, console=quiet())
    assert_close(tmp_path / "run", two[f"resumed four {mode}"], STEPS + 1)


@pytest.fixture
def endless(make_recipe, tmp_path):
    """``endless("checkpoint.every=1", ...)``: torchrun with two, in step 2 or later; its folder."""

    def start(*overrides: str) -> tuple[subprocess.Popen[str], Path]:
        long = recipe_of(make_recipe, overrides, 500)
        file, folder = tmp_path / "recipe.yaml", tmp_path / "run"
        file.write_text(long.to_yaml(), encoding="utf-8")
        command = ("-m", "fewstep", "distill", str(file), "--out", str(folder), "--json")
        process = torchrun(2, *command)
        deadline = time.monotonic() + 600  # a busy machine is slow, not wrong
        while last_step(folder / METRICS) < 1:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process, folder

    return start


@pytest.mark.slow
@pytest.mark.parametrize("who", ["torchrun", "one process", "all, as Slurm does"])
def test_a_signal_to_any_of_them_stops_all_at_one_step(who, endless, make_recipe):
    """They finish the step, save and end; --resume goes on, here alone."""
    seldom = ("checkpoint.every=1000", "preview.every=1000")
    process, folder = endless(FULL, *seldom)
    workers = psutil.Process(process.pid).children()
    signalled = {"torchrun": [process], "one process": workers[-1:]}
    for each in signalled.get(who, [*workers, process]):
        each.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    (path,) = store.listed(folder / "checkpoints")
    step = store.read_state(path)["step"]
    assert last_step(folder / METRICS) == step < 500
    if who == "one process":  # else torchrun says that it was signalled
        assert process.returncode == 0, output
        assert "Traceback" not in output
    again, console = recipe_of(make_recipe, seldom, max(step, 2) + 1), quiet()
    distill(again, folder, resume=True, console=console)
    assert path.name in console.file.getvalue()
    lines = (folder / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(again.train.steps + 1))


@pytest.mark.slow
def test_killed_while_writing(killed, two, alone):
    """A checkpoint is there when all have written their shards of it, or not at all."""
    names = [path.name for path in store.listed(killed / "checkpoints")]
    assert names == [f"step-{step:08d}" for step in range(1, STEPS)]
    assert [*store.unfinished(killed / "checkpoints", STEPS).iterdir()]
    assert_close(alone(()), two["resumed killed"])  # whose last checkpoint is written late
    assert not [*(two["resumed killed"] / "checkpoints").glob(".unfinished-*")]


@pytest.mark.slow
def test_a_slow_disk_holds_nobody_up(two, alone):
    """A step with its preview goes by while one process still writes its shards of the last one."""
    folder = two["slow disk"]
    first = folder / "checkpoints" / "step-00000001" / "state.json"
    assert (folder / METRICS).stat().st_mtime < first.stat().st_mtime
    for step in range(1, STEPS + 1):
        assert_close(alone(()), folder, step)


@pytest.mark.slow
def test_a_killed_process_ends_the_job(make_recipe, endless):
    """kill -9 of one: the job ends within a minute and says why; --resume goes on, here alone."""
    process, folder = endless(FULL)
    while not store.listed(folder / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    psutil.Process(process.pid).children()[-1].kill()
    killed = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in output, output
    assert '"process-lost"' in output, output
    assert "Traceback" not in output.partition("ChildFailedError")[0].rpartition("Traceback")[0]

    newest = store.listed(folder / "checkpoints")[-1]
    step = store.read_state(newest)["step"]
    console, steps = quiet(), max(step, 2) + 1
    again = recipe_of(make_recipe, (), steps)
    distill(again, folder, resume=True, console=console)
    assert newest.name in console.file.getvalue()


@pytest.fixture(scope="module")
def traffic(make_recipe, tmp_path_factory):
    """``traffic("model.dtype=bfloat16", ...)``: what two sharded processes send in two steps."""

    def get(*overrides: str) -> dict:
        root, never = tmp_path_factory.mktemp("traffic"), 1000
        quiet = [f"{each}.every={never}" for each in ("checkpoint", "preview", "health")]
        size = ("data.batch_size=8", "data.accumulate=8", "student.gradient_checkpointing=true")
        recipe = recipe_of(make_recipe, (*size, *quiet, "grid.max_steps=4", FULL, *overrides), 4)
        (root / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")
        process = torchrun(2, str(TRAFFIC), str(root / "recipe.json"), str(root / "run"))
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        return json.loads((root / "run" / "traffic.json").read_text())

    return get


@pytest.mark.slow
def test_what_is_sent(traffic, tell):
    """Half of what it was before weights travelled in bfloat16, once a walk, gradients once a step.

    The first run is how everything was sent until then. In the precision of the second, the frozen
    teacher was already gathered in bfloat16: 20.7 MB in place of 21.4.
    """
    every_time = traffic("parallel.keep_gathered=false", "parallel.reduce_once=false")
    once, low = traffic(), traffic("model.dtype=bfloat16")
    for one, other in zip(every_time["losses"], once["losses"], strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert once["reduced"] == low["reduced"] <= every_time["reduced"] / 3
    assert low["gathered"] == once["gathered"] / 2
    before, now = (each["gathered"] + each["reduced"] for each in (every_time, low))
    assert now <= 0.5 * before * 20.7 / 21.4
    tell(f"two sharded steps send {now / 1e6:.1f} MB, before {before / 1e6:.1f} MB")
