"""Adapters as matrices: joined ones add up, extracted ones are the nearest of their rank."""

from __future__ import annotations

import torch

from fewstep.models.lora import extracted_lora, joined_lora


def adapter(layer, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.lora_A.weight": torch.randn(rank, 6, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(5, rank, generator=generator),
    }


def change(layers, layer):
    return layers[f"{layer}.lora_B.weight"] @ layers[f"{layer}.lora_A.weight"]


def test_joined_adapters_change_a_layer_as_both_do():
    first, second = adapter("a", 2, 0), adapter("a", 3, 1) | adapter("b", 1, 2)
    joined = joined_lora(first, second)
    both = change(first, "a") + change(second, "a")
    torch.testing.assert_close(change(joined, "a"), both)
    torch.testing.assert_close(change(joined, "b"), change(second, "b"))


def test_an_extracted_adapter_is_the_difference_as_far_as_its_rank_goes():
    base = {"a.weight": torch.randn(5, 6, generator=torch.Generator().manual_seed(3))}
    moved = {"a.weight": base["a.weight"] + change(adapter("a", 2, 4), "a")}
    delta = moved["a.weight"] - base["a.weight"]
    for rank in (2, 5, 9):
        found = change(extracted_lora(moved, base, ["a"], rank), "a")
        torch.testing.assert_close(found, delta, rtol=1e-4, atol=1e-5)
    left = torch.linalg.svdvals(delta)[1:].norm()
    nearest = change(extracted_lora(moved, base, ["a"], 1), "a")
    torch.testing.assert_close((nearest - delta).norm(), left, rtol=1e-4, atol=1e-5)
