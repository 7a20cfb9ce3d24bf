"""What computing in low precision costs beside products and attention, and what it changes."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep import models
from fewstep.config import Recipe
from fewstep.core.noise import Draws
from fewstep.planning.trace import MetaNetworks
from fewstep.train.memory.low_copy import cast
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER
from fewstep.train.trainer import advance

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product")


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, except products, attention and views."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name.startswith((*_PRODUCTS, "view", "_unsafe_view", "empty"))):
            tensors = [x for x in tree_leaves((args, kwargs, output)) if torch.is_tensor(x)]
            self.by_name[name] += sum(each.numel() * each.element_size() for each in tensors)
        return output


def traffic(recipe, role, *settings, grad=False):
    """Bytes of one call of a role, in the shapes of SD3-Medium at 1024 x 1024."""
    recipe = Recipe.named(recipe, list(settings))
    networks = MetaNetworks(recipe, models.load_meta(recipe.model.path))
    with networks.metered(role), torch.set_grad_enabled(grad):
        networks.velocity(role, 1)  # casts, if any, are done once for many calls
        with Traffic() as counted:
            networks.velocity(role, 1)
    return sum(counted.by_name.values())


@pytest.fixture(scope="module")
def pure():
    """Of the network whose weights and inputs are all bfloat16, as pipelines draw with it."""
    recipe = Recipe.named("sd3-medium", [])
    networks = MetaNetworks(recipe, models.load_meta(recipe.model.path))
    net = cast(networks.roles.net(TEACHER), torch.bfloat16)
    with networks.metered(TEACHER), torch.no_grad(), Traffic() as counted:
        networks.velocity(TEACHER, 1)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    return sum(counted.by_name.values())


@pytest.mark.parametrize("role", [STUDENT, FAKE_TEACHER, TEACHER])
def test_calls_without_a_graph_cost_what_a_pipeline_costs(role, pure):
    """The backward simulation, the fake teacher's answers and the teacher's: two calls in three."""
    assert traffic("sd3-medium", role) <= 1.25 * pure


def test_a_teacher_with_adapters_beside_it_costs_no_more(pure):
    assert traffic("sd3-medium-lora", TEACHER, "memory.base=null") <= 1.25 * pure


@pytest.mark.parametrize("grad", [False, True])
def test_adapters_cost_little_more(grad, pure):
    """Their float32 masters are cast, which are small; no pass over activations is added."""
    assert traffic("sd3-medium-lora", STUDENT, "memory.base=null", grad=grad) <= 1.1 * pure


def test_an_adapter_adds_what_peft_adds(make_run):
    """In low precision the product adds to the layer's answer, where peft multiplies and adds."""
    from peft.tuners.lora import Linear

    run = make_run("student.mode=lora", "student.lora.rank=4", "student.lora.alpha=6")
    layer = next(each for each in run.backbone.net.modules() if isinstance(each, Linear))
    found = []
    with run.train_state.roles.active(STUDENT):
        for dtype, forward in ((torch.bfloat16, layer.forward), (torch.float32, None)):
            layer.base_layer.to(dtype)
            up = layer.lora_B[STUDENT].weight
            nn.init.normal_(up, generator=torch.Generator().manual_seed(0))
            x = Draws(3, 0).normal("xt", range(2), (7, layer.in_features)).to(dtype)
            x.requires_grad_(True)
            answer = (forward or partial(Linear.forward, layer))(x)
            assert answer.dtype == dtype
            sides = layer.lora_A[STUDENT].weight, up
            found.append((answer, *torch.autograd.grad(answer.square().mean(), (x, *sides))))
    for low, wanted in zip(*found, strict=True):
        error = (low.float() - wanted).norm() / wanted.norm()
        assert error < 0.02


def student(run):
    """What the student answers without a graph, and its weights in bfloat16."""
    roles = run.train_state.roles
    xt = Draws(3, 0).normal("xt", range(2), (16, 8, 8)).bfloat16()
    sigma, cond = torch.tensor([0.8, 0.3]), run.encoder.encode(["a ring", "a star"])
    with torch.no_grad():
        answer = roles.student(xt, sigma, cond)
        low = cast(copy.deepcopy(roles.net(STUDENT)), torch.bfloat16)
        return answer, run.backbone.velocity(low, xt, sigma, cond)


def test_the_copy_follows_the_masters(make_run):
    """After an update of the student, under the running mean, and after it."""
    run = make_run("model.dtype=bfloat16", "student.every=1", "student.optimizer.lr=0.01")
    run.folder.mkdir(parents=True, exist_ok=True)
    seen = [student(run)]
    with run.log.opened(0):
        advance(run)
    seen.append(student(run))
    with run.train_state.ema.applied():
        seen.append(student(run))
    seen.append(student(run))
    for answer, wanted in seen:
        assert torch.equal(answer, wanted)
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])
    assert torch.equal(seen[1][0], seen[3][0])


def test_gradients_do_not_share_the_room_with_copies(make_run):
    run = make_run("model.dtype=bfloat16")
    student(run)
    roles = run.train_state.roles

    with torch.no_grad():
        copied, _ = roles.answering(STUDENT)
    assert all(parameter.numel() for parameter in copied.parameters())
    loss = sum(p.sum() for p in roles.parameters(STUDENT).values())
    roles.backward(STUDENT, loss)
    assert not any(parameter.numel() for parameter in copied.parameters())
