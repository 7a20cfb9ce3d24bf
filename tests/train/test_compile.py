"""Compiled blocks: every variant once, whatever is switched, and nothing outside the graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func

from fewstep.train.memory.quantization import quantize
from fewstep.train.roles import STUDENT, TEACHER
from fewstep.train.trainer import advance

LORA = ["student.mode=lora", "student.lora.rank=4", "student.compile=true", "student.every=1"]


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that dynamo hands on to be compiled; they run as they are, without a compiler."""
    found = []

    def keep(graph, inputs, **settings):
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", keep)
    yield found
    torch.compiler.reset()


def test_an_adapter_is_compiled_once_and_so_is_none(graphs, make_run):
    run = make_run(*LORA, "model.dtype=bfloat16")
    roles, xt = run.train_state.roles, torch.randn(2, 16, 8, 8)
    cond, sigma = run.encoder.encode(["a ring", "a star"]), torch.tensor([0.8, 0.3])
    found = []
    with torch.no_grad():
        for role in (STUDENT, TEACHER) * 3:
            roles.velocity(role, xt, sigma, cond)
            found.append(len(graphs))
    assert 0 < found[0] < found[1] == found[-1], found
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["model.dtype=bfloat16", "memory.base=nf4"],
        ["model.dtype=float32"],
        ["memory.base=int8", "student.gradient_checkpointing=true"],
    ],
    ids=lambda settings: settings[-1],
)
def test_after_an_iteration_nothing_is_compiled_anew(settings, graphs, make_run):
    run = make_run(*LORA, *settings)
    run.folder.mkdir(parents=True)
    with run.log.opened(0):
        advance(run)
        once = len(graphs)
        for run.step in (0, 0):  # the same draws: a batch of one, say, is a variant of its own
            advance(run)
    assert once == len(graphs) > 0
    assert not counters["graph_break"]


@pytest.mark.parametrize("base", ["int8", "fp8", "nf4"])
def test_decoding_is_inside_the_graph(base):
    """One graph each way, which takes codes and is not handed decoded weights."""

    class OneLayer:
        net = nn.Sequential(nn.Linear(128, 64).to(torch.bfloat16))

        def blocks(self, net):
            return [net]

    def keep(graph, inputs):
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        taken.append([each.numel() for each in tensors if each.dtype == torch.bfloat16])
        return make_boxed_func(graph.forward)

    def backend(graph, inputs):
        return aot_module_simplified(graph, inputs, fw_compiler=keep, bw_compiler=keep)

    one, taken = OneLayer(), []
    quantize(one, base)
    torch.compiler.reset()
    compiled = torch.compile(one.net, backend=backend, fullgraph=True, dynamic=True)
    x = torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True)
    compiled(x).sum().backward()
    assert len(taken) == 2
    assert 64 * 128 not in taken[0], "decoded weights"
    torch.testing.assert_close(compiled(x), one.net(x))
