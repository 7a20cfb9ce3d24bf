"""What a recipe and its variants take, counted without weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import nn

from fewstep import models, objectives
from fewstep.config import Recipe
from fewstep.core.schedules import RandomGrid
from fewstep.models.base import Backbone
from fewstep.models.dummy_conditioning import dummy_conditioning
from fewstep.objectives import Objective
from fewstep.planning.counts import (
    CountingNetworks,
    Evaluations,
    Parameters,
    count_calls,
    count_parameters,
    trained_shapes,
)
from fewstep.planning.memory_tracker import OpCache
from fewstep.planning.trace import MetaNetworks, Trace, at_work, trace
from fewstep.train.fused import lockstep_parts, simulated_together, walk_evaluations
from fewstep.train.roles import STUDENT, TEACHER
from fewstep.train.step import Algorithm

T = TypeVar("T")

_DRAWS = 32  # of anchors, for each number of steps


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a recipe takes; variants of it with equal calls share a trace.

    Attributes:
        recipe: What would be run.
        backbone: Its model, on the meta device.
        objectives: Those of the recipe.
        gpus: Devices that work together.
        cuda: Follow CUDA's autocast; else a processor's.
        room: Bytes that a device has for the run, on which what is kept whole depends.
    """

    recipe: Recipe
    backbone: Backbone
    objectives: list[Objective]
    gpus: int = 1
    cuda: bool = True
    room: float = math.inf
    _op_cache: OpCache = field(default_factory=OpCache)
    _results: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls, recipe: Recipe, gpus: int = 1, *, cuda: bool = True, room: float = math.inf
    ) -> Self:
        """Estimate of a recipe, with its model and its objectives.

        Raises:
            FewstepError: A run would be refused, since they do not exist or do not go together.
        """
        built = objectives.build_all(recipe)
        backbone = models.load_meta(
            recipe.model.address, force=recipe.model.force, **recipe.model.options
        )
        takes_guidance = "guidance" in dummy_conditioning(backbone, 1, torch.float32).tensors
        guidance = "embedded" if takes_guidance else "cfg"
        objectives.refuse_unsupported(built, guidance, backbone.name)
        return cls(recipe, backbone, built, gpus, cuda, room)

    def variant(self, settings: Mapping[str, Any]) -> Self:
        """Estimate of the recipe with other settings, by dotted key.

        Raises:
            ConfigError: They do not go with the rest of the recipe.
        """
        return replace(self, recipe=Recipe.from_values(dict(self.recipe), settings))

    @property
    def shards(self) -> int:
        """Devices that one copy of the networks is split over."""
        parallel = self.recipe.parallel
        return 1 if parallel.shard == "none" else max(self.gpus // parallel.replicate, 1)

    @property
    def parameters(self) -> Parameters:
        """The model's numbers of parameters, and those of the student."""
        student = self.recipe.student
        key = student.model_dump_json(include={"mode", "lora"})
        return self._shared(lambda: count_parameters(self.backbone, student), key)

    @property
    def trained(self) -> list[int]:
        """Numbers in each parameter that is trained of the student."""
        student = self.recipe.student
        key = student.model_dump_json(include={"mode", "lora"})
        shapes = self._shared(lambda: trained_shapes(self.backbone, student), key, "shapes")
        return [math.prod(shape) for shape in shapes]

    @property
    def algorithm(self) -> Algorithm:
        """What an iteration does; at the largest of several sizes."""
        recipe, size = self.recipe, self.recipe.resolution.largest
        for each in recipe.resolution.sizes:
            self.backbone.latent_shape(*each)  # which refuses what the model cannot draw
        shift = self.backbone.student_shift(recipe.grid, *size)
        shape = self.backbone.latent_shape(*size)
        return Algorithm.from_recipe(recipe, self.objectives, latent_shape=shape, shift=shift)

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be known of the student's grid, a line each."""
        return self.backbone.grid_notes(self.recipe.grid, *self.recipe.resolution.largest)

    @property
    def calls(self) -> CountingNetworks:
        """What one sample costs in a student update."""
        algorithm = self.algorithm
        key = algorithm.fused, algorithm.batch_teachers
        return self._shared(lambda: count_calls(self.recipe, self.backbone, algorithm), key)

    @property
    def evaluations(self) -> Evaluations:
        """Network evaluations of an iteration; previews and health are left out."""
        algorithm, calls = self.algorithm, self.calls
        every, samples = algorithm.every, calls.samples
        simulation = self._simulation()
        if algorithm.reuses_anchor_prediction(self.recipe.data.parts(self.gpus)):
            simulation -= 1 / every  # counted as the objectives'
        return Evaluations(
            simulation=simulation,
            fake_teacher=float(algorithm.fake_updates),
            student=samples["student"] / every,
            teachers=(samples["teacher"] + samples["fake_teacher"]) / every,
            networks=float(calls.samples_of_networks),
            backward=algorithm.fake_updates + calls.backward / every,
        )

    def _simulation(self) -> float:
        """Evaluations of the student on the way to the anchors and at them, per sample."""
        grid, size = self.recipe.grid, self.recipe.data.batch_size
        if isinstance(grid, RandomGrid):
            lengths = range(grid.min_steps, grid.max_steps + 1)
        else:
            lengths = range(len(grid.sigmas), len(grid.sigmas) + 1)
        mean = sum(lengths) / len(lengths)
        if not self.algorithm.stops_at_anchors:
            return mean
        if self.shards == 1:
            return (mean + 1) / 2
        # Devices that share a network wait for each other: counted on drawn anchors.
        parts, spent, samples = self.recipe.data.parts(self.gpus), 0, 0
        generator = torch.Generator().manual_seed(0)
        for length in lengths:
            for _ in range(_DRAWS):
                index = torch.randint(length, (size,), generator=generator)
                split = lockstep_parts(index, self.gpus, parts)
                sizes, most = [each.shape[1] for each in split], self.algorithm.simulate_batch
                for group in simulated_together(split, sizes, most):
                    part = torch.cat(group, dim=1)
                    calls = int(index[part].max()) + 1
                    spent += sum(walk_evaluations(index[own], calls) for own in part)
                samples += size
        return spent / samples

    @property
    def trace(self) -> Trace:
        """A call of the recipe's networks.

        Gradients are counted from when they take the place of activations in a backward pass; not
        where parts of a batch add to the same gradients, nor where gradients are split over
        devices, so that little of them stays on any.
        """
        recipe, largest = self.recipe, self.calls.largest
        split = recipe.student.mode == "full" and self.shards > 1
        with_gradients = recipe.data.parts(self.gpus) == 1 and not split
        batch = micro_batch(recipe, self.gpus)
        simulated = min(recipe.train.simulate_batch or 0, recipe.data.batch_size // self.gpus)
        student = recipe.student.model_dump_json(exclude={"optimizer"})
        dtypes = recipe.model.dtype, recipe.memory.trained_dtype, recipe.memory.teacher_dtype

        def traced() -> Trace:
            networks = MetaNetworks(recipe, self.backbone, cuda=self.cuda, op_cache=self._op_cache)
            return trace(
                networks,
                batch=batch,
                largest=largest,
                simulated=simulated,
                with_gradients=with_gradients,
            )

        key = batch, simulated, *largest.items(), with_gradients, student, dtypes
        return self._shared(traced, *key)

    @property
    def iteration_flops(self) -> float:
        """Arithmetic of an iteration, all samples, on average.

        A backward pass counts as two forward passes, and one more for what it recomputes.
        """
        evaluations, checkpointed = (
            self.evaluations,
            int(self.recipe.student.gradient_checkpointing),
        )
        backward = 2 + (1 / checkpointed if checkpointed else 0)  # every so many-th block, 0: none
        passes = evaluations.total + evaluations.backward * backward
        return passes * self.trace.flops * self.recipe.data.batch_size

    def denoising(self, samples: int) -> int:
        """Most bytes beyond its weights while the finished student predicts some samples."""
        student = self.recipe.student
        role = STUDENT if student.mode == "lora" else TEACHER  # which is as the student at rest

        def traced() -> int:
            recipe = Recipe.from_values(dict(self.recipe), {"memory.teacher_dtype": None})
            networks = MetaNetworks(recipe, self.backbone, cuda=self.cuda, op_cache=self._op_cache)
            with networks.metered(role) as (tracker, _), torch.no_grad():
                weights = tracker.now
                networks.velocity(role, samples)
                return tracker.peak - weights

        return self._shared(traced, samples, role, student.model_dump_json(include={"lora"}))

    def encoding(self, prompts: int) -> int:
        """Most bytes beyond its weights while a text encoder encodes some prompts."""
        backbone, sizes = self.backbone, []
        tokens = backbone.max_sequence_length or backbone.text_tokens
        for name in backbone.encoder_names:
            if not isinstance(getattr(backbone.pipe, name, None), nn.Module):
                continue
            encoder = self._part(name)
            length = min(tokens, getattr(encoder.config, "max_position_embeddings", tokens))
            ids = torch.zeros(prompts, length, dtype=torch.long, device="meta")
            sizes.append(self._at_work(encoder, partial(encoder, ids), name, prompts))
        return max(sizes, default=0)

    def decoding(self, pictures: int) -> int:
        """Most bytes beyond its weights while the VAE decodes some pictures."""
        if not isinstance(getattr(self.backbone.pipe, "vae", None), nn.Module):
            return 0
        backbone, vae = copy.copy(self.backbone), self._part("vae")
        backbone.pipe = copy.copy(backbone.pipe)
        backbone.pipe.vae = vae
        latents = torch.empty(pictures, *self.algorithm.latent_shape, device="meta")
        return self._at_work(vae, partial(backbone.decode, latents), "vae", pictures)

    def _part(self, name: str) -> Any:
        """A part of the pipeline as it is loaded, on the meta device."""
        part = copy.deepcopy(getattr(self.backbone.pipe, name))
        return nn.Module.to(part, getattr(torch, self.recipe.model.dtype))

    def _at_work(self, part: nn.Module, call: Callable[[], object], *key: object) -> int:
        def traced() -> int:
            return at_work(part, call, self._op_cache, cuda=self.cuda)

        size = self.recipe.resolution.largest
        return self._shared(traced, self.recipe.model.dtype, *size, *key)

    def _shared(self, compute: Callable[[], T], *key: object) -> T:
        """A result that variants with equal keys share."""
        if key not in self._results:
            self._results[key] = compute()
        result: T = self._results[key]
        return result


def micro_batch(recipe: Recipe, gpus: int) -> int:
    """Samples that one device works on at a time."""
    data = recipe.data
    return -(-(data.batch_size // gpus) // data.parts(gpus))
