"""Which step loses: a student and its teacher take turns on the segments of the four-step grid.

    python bench/segments.py runs/demo [SSSS SSST TSSS ...] [--count 256] [--fine 12]

A plan has one letter for each segment: S, one step of the student; T, several guided steps of the
teacher, spread over the segment as the model's own grid would be. What SSST has right over SSSS is
what the last step alone loses. The run needs a ground truth that judges pictures.
"""

from __future__ import annotations

import argparse
import copy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone
from fewstep.config import EvaluateRecipe
from fewstep.evaluate.oracle import wholly_right
from fewstep.evaluate.runner import make_reader
from fewstep.records import Conditioning, VelocityFn
from fewstep.runs import Run
from fewstep.schedules import few_step_sigmas
from fewstep.simulate import sample

STEPS = 4
PLANS = ("SSSS", "SSST", "SSTT", "STTT", "TTTT", "TSSS", "TTSS", "TTTS")
BATCH = 64


def segments(backbone: Backbone, size: tuple[int, int], letters: str, fine: int) -> list[Tensor]:
    """Sigmas that each segment walks over: two of a student's, fine + 1 of a teacher's."""
    ends, shift = [*few_step_sigmas(STEPS), 0.0], backbone.shift(*size)
    counts = [1 if letter == "S" else fine for letter in letters]
    bases = (torch.linspace(*pair, n + 1) for pair, n in zip(pairwise(ends), counts, strict=True))
    return [shift(base) for base in bases]


def velocity_of(backbone: Backbone, net: nn.Module, batch: int, guidance: float) -> VelocityFn:
    """A network's velocity, guided."""

    def velocity(xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return backbone.velocity(net, xt, sigma, cond)

    return backbone.guided(velocity, batch, guidance)


def main() -> None:
    """Prints the share of right pictures for every plan, and that of each attribute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("plans", nargs="*", default=PLANS)
    parser.add_argument("--count", type=int, default=256, help="prompts")
    parser.add_argument("--fine", type=int, default=12, help="steps of the teacher in a segment")
    asked = parser.parse_args()
    run = Run.open(asked.run)
    settings: EvaluateRecipe = run.recipe.evaluate
    reader, backbone = make_reader(settings), run.load_backbone()
    if reader.truth is None:
        parser.error("the run's recipe has no evaluate.truth")
    teacher = copy.deepcopy(backbone.net)
    nets = {"T": teacher, "S": run.load_student(backbone).net}
    guidances = {"T": max(arm.guidance or 1.0 for arm in settings.arms), "S": 1.0}
    prompts = list(reader.prompts[: asked.count])
    for plan in asked.plans:
        if len(plan) != STEPS or set(plan) - nets.keys():
            parser.error(f"{plan!r} is no plan: {STEPS} letters, each S or T")
        walks, images = segments(backbone, run.size, plan, asked.fine), []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            seeds = range(reader.seed + start, reader.seed + start + len(part))
            with torch.no_grad():
                cond, xt = backbone.encode(part), backbone.draw_noise(seeds, *run.size)
                for letter, sigmas in zip(plan, walks, strict=True):
                    guidance = guidances[letter]
                    velocity = velocity_of(backbone, nets[letter], len(part), guidance)
                    xt = sample(velocity, xt, sigmas, cond)
                images.append(backbone.decode(xt).float().clamp(0, 1))
        verdicts = reader.truth.judge(prompts, torch.cat(images))
        names = sorted({name for verdict in verdicts for name, _ in verdict})
        shares = [
            f"{name} {sum(flags) / len(flags):.1%}"
            for name in names
            for flags in [[flag for v in verdicts for other, flag in v if other == name]]
        ]
        right = wholly_right(verdicts).double().mean()
        print(f"{plan}: {right:.1%} right; {', '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
