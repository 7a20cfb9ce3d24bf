"""Which step loses: a student and its teacher take turns on the segments of the four-step grid.

    python bench/segments.py runs/demo [SSSS SSST SSS2 ...] [--count 256] [--fine 12]

A plan has one sign for each segment: S, one step of the student; a digit, so many steps of it; T,
several guided steps of the teacher. Steps are spread over a segment as the model's own grid would
be. What SSST has right over SSSS is what the last step alone loses, and SSS2 tells whether the
student could do it in two. The run is one of the tiny world.
"""

from __future__ import annotations

import argparse
import copy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.schedules import few_step_sigmas
from fewstep.core.solver import sample
from fewstep.evaluation.extractor import configurations_of
from fewstep.evaluation.runner import make_extractor
from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import guided_velocity
from fewstep.models import Backbone
from fewstep.toyworld.plugin import Accuracy, shares

STEPS = 4
PLANS = ("SSSS", "SSST", "SSTT", "STTT", "TTTT", "TSSS", "TTSS", "TTTS", "SSS2", "SSS4")


def segments(
    backbone: Backbone, size: tuple[int, int], plan: str, fine: int, *, shift: float | None = None
) -> list[Tensor]:
    """Shifted levels that each segment of the student's grid walks over, [steps + 1]."""
    ends, shifted = [*few_step_sigmas(STEPS), 0.0], backbone.effective_shift(shift, *size)
    counts = [{"S": 1, "T": fine}.get(sign) or int(sign) for sign in plan]
    bases = (torch.linspace(*pair, n + 1) for pair, n in zip(pairwise(ends), counts, strict=True))
    return [shifted(base) for base in bases]


def main() -> None:
    """Prints the share of right pictures for every plan, and that of each attribute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("plans", nargs="*", default=PLANS)
    parser.add_argument("--count", type=int, default=256, help="prompts")
    parser.add_argument("--fine", type=int, default=12, help="steps of the teacher in a segment")
    args = parser.parse_args()
    for plan in args.plans:
        if len(plan) != STEPS or set(plan) - set("ST123456789"):
            parser.error(f"{plan!r} is no plan: {STEPS} signs, each S, T or a digit from 1")
    run = RunFolder.open(args.run)
    extractor, backbone = make_extractor(run.recipe.evaluate), run.load_backbone()
    metric = Accuracy()
    metric.prepare(extractor.prompts)
    teachers = configurations_of("teacher", run, backbone)
    guidances = [configuration.sampler.guidance for configuration in teachers]
    guidance = max(guidances, default=backbone.default_guidance)
    teacher = copy.deepcopy(backbone.net)  # the student's weights take its place
    student = run.load_student(backbone).net
    prompts = list(extractor.prompts[: args.count])
    for plan in args.plans:
        own, images = run.recipe.grid.shift, []
        walks = segments(backbone, run.size, plan, args.fine, shift=own)
        for start in range(0, len(prompts), extractor.batch):
            part = prompts[start : start + extractor.batch]
            seeds = range(extractor.seed + start, extractor.seed + start + len(part))
            with torch.no_grad():
                cond, xt = backbone.encode(part), backbone.draw_noise(seeds, *run.size)
                for sign, sigmas in zip(plan, walks, strict=True):
                    net, scale = (teacher, guidance) if sign == "T" else (student, 1.0)
                    velocity = guided_velocity(backbone, net, len(part), scale)
                    xt = sample(velocity, xt, sigmas, cond)
                images.append(backbone.decode(xt).float().clamp(0, 1))
        figures = shares(metric.measure(prompts, torch.cat(images)))
        print(plan, *(f"{name} {value:.1%}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
