"""A compiled network: one graph for each structure and gradient mode, and the same numbers."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ONE_LEVEL, sent
from torch import Tensor

from degradation import FAMILIES, Draws, Family, FromPhysics, GaussianNoise, Problem, get_family
from networks import Denoiser, LevelConfig, NetworkConfig, make_config
from networks.attention import use_backend
from networks.dropout import seed_dropout
from samplers import Heun

SHAPE = (3, 16, 16)
# Operators that share a graph; families of files have the operators of others.
KINDS: dict[str, list[tuple[str, Any]]] = {
    "masks": [
        (name, None)
        for name in (
            *("MissingPatches", "Box", "MissingBox", "RandomPixels", "CentreBox", "HalfImage"),
        )
    ],
    "stride 1": [("MotionBlur", 1), ("GaussianBlur", 1), ("UniformBlur", 1)],
    "stride 2": [("MotionBlur", 2)],
    "stride 8": [("MotionBlur", 8), ("SRConv", 8), ("AveragePool", 8), ("Bicubic", 8)],
    "matrix": [("MatrixDegradation", None)],
    "nothing": [("NoDegradation", None), ("RandomDegradation", (3, None))],
    "Hadamard": [("Hadamard", None)],
    "colours": [("Colourisation", None)],
}
# A trace takes seconds: a graph for one stride is traced like one for another.
TRACED = [kind for kind in KINDS if kind not in ("stride 1", "stride 2")]
SMALL = make_config("tiny", num_classes=3, network=ONE_LEVEL)


def test_every_family_is_of_a_kind() -> None:
    names = {name for kind in KINDS.values() for name, _ in kind}
    assert names == set(FAMILIES) - {"FixedMask", "FixedKernel"}
    assert all(get_family(n).structure(0) == s for kind in KINDS.values() for n, s in kind
               if n != "MotionBlur")  # fmt: skip


class Graphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def randomised(config: NetworkConfig) -> Denoiser:
    denoiser = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return denoiser


def family(name: str) -> Family:
    return get_family(name, {"strides": "1,2,4,8"} if name == "MotionBlur" else {})


def problem(family: Family, structure: Any, seed: int, noise: float = 0.0) -> Problem:
    """Two problems of new content, with classes."""
    seeds = [seed, seed + 1]
    operator = family.sample(SHAPE, structure, seeds)
    x, labels = torch.rand(2, *SHAPE) * 2 - 1, torch.tensor([seed % 3, -1])
    return GaussianNoise(noise).measure(operator, x, Draws(seeds), labels)


@pytest.mark.parametrize("kind", TRACED)
def test_one_graph_for_a_kind_of_operators(kind: str) -> None:
    """None for another family, content, noise level, σ (a tensor or a number), class or run."""
    denoiser, graphs = randomised(SMALL), Graphs()
    denoiser.compile(backend=graphs)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        for name, structure in KINDS[kind]:
            call_with_all_that_changes(denoiser, x, name, structure)
            assert graphs.count == 1, name
        Heun(num_steps=3)(denoiser, x, problem(family(name), structure, 9), Draws([1, 2]))
    assert graphs.count == 1
    if kind == "matrix":
        call_with_all_that_changes(denoiser, x, name, structure)
        assert graphs.count == 2  # one more with gradients


def call_with_all_that_changes(denoiser: Denoiser, x: Tensor, name: str, structure: Any) -> None:
    for seed, noise, sigma in ((1, 0.0, 0.3), (5, 0.1, torch.tensor([2.0, 9.0])), (7, 0.3, 4.0)):
        task = problem(family(name), structure, seed, noise)
        denoiser(x, sigma, task)
        denoiser(x, sigma, task.with_classes(torch.tensor([2, 2])))
        levels = torch.tensor([0.1, 0.2])
        denoiser(x, sigma, Problem(task.degradation, task.y, levels, task.class_labels))
        if name != "Colourisation":  # one operator for all: a part has storage of its own
            denoiser(x, sigma, task[torch.tensor([1, 0])])


def test_a_copy_of_a_compiled_network_has_weights_of_its_own() -> None:
    denoiser = randomised(make_config("tiny", "blind", network=ONE_LEVEL))
    denoiser.compile(backend="eager")
    x, task = torch.randn(2, *SHAPE), problem(get_family("MotionBlur"), 2, 3)
    with torch.no_grad():
        denoiser(x, 1.0, task)
        other = copy.deepcopy(denoiser)
        for parameter in other.parameters():
            parameter.mul_(1.1)
        fresh = Denoiser(other.config).eval()
        fresh.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(x, 1.0, task), fresh(x, 1.0, task))
        assert not torch.equal(other(x, 1.0, task), denoiser(x, 1.0, task))


def test_operators_by_iterations_run_beside_a_compiled_network() -> None:
    denoiser, graphs = randomised(make_config("tiny")), Graphs()
    operator = FromPhysics(PlainAverage(), SHAPE, 2)
    x = torch.randn(2, *SHAPE)
    task = Problem(operator, operator.H(x))
    with torch.no_grad():
        expected = denoiser(x, 1.0, task)
        denoiser.compile(backend=graphs)
        assert torch.equal(denoiser(x, 1.0, task), expected) and graphs.count == 0


class PlainAverage:
    """The means of 2×2 pixels, as a physics."""

    def A(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4


def test_a_network_without_an_operator_is_one_graph_for_all() -> None:
    denoiser = randomised(make_config("tiny", "blind", network=ONE_LEVEL))
    graphs = Graphs()
    denoiser.compile(backend=graphs)
    with torch.no_grad():
        for name, structure in (kind[0] for kind in KINDS.values()):
            denoiser(torch.randn(2, *SHAPE), 1.0, problem(family(name), structure, 3))
    assert graphs.count == 1


def test_torch_compile_of_the_whole_denoiser_breaks_no_graph() -> None:
    family = get_family("MotionBlur")
    denoiser, task = randomised(SMALL), problem(family, 2, 3, 0.1)
    whole = torch.compile(denoiser, backend="eager", fullgraph=True)
    x, sigma = torch.randn(2, *SHAPE), torch.tensor([0.4, 3.0])
    expected = denoiser(x, sigma, task)
    fresh = problem(family, 2, 3, 0.1)
    fresh = Problem(fresh.degradation, task.y, task.noise_level, task.class_labels)
    torch.testing.assert_close(whole(x, sigma, fresh), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_compiled_network_computes_the_same() -> None:
    """By PyTorch's own compiler, values and gradients."""
    level = LevelConfig(depth=1, width=24, kernel=5, d_head=8)
    denoiser = randomised(NetworkConfig(SHAPE, 2, (level,), mapping_width=16, mapping_depth=1))
    family = get_family("MotionBlur", {"strides": "1"})
    task, x = problem(family, 1, 3, 0.1), torch.randn(2, *SHAPE)

    def results() -> list[Tensor]:
        out = denoiser(x, 0.7, task)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), weights)]

    weights = [p for n, p in denoiser.named_parameters() if "aug" not in n and "logvar" not in n]
    expected = results()
    denoiser.compile()
    for found, exact in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


def test_recomputed_levels_have_the_same_gradients() -> None:
    denoiser = randomised(make_config("tiny"))
    task, x = problem(get_family("MotionBlur"), 2, 3), torch.randn(2, *SHAPE)

    def gradients() -> list[Tensor]:
        loss = denoiser(x, 0.7, task).square().sum()
        return list(torch.autograd.grad(loss, list(denoiser.net.mid_level.parameters())))

    kept = gradients()
    denoiser.net.recompute = frozenset({0, 1})
    for found, expected in zip(gradients(), kept, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("structure", [None, 2])
def test_recomputed_blocks_drop_what_they_dropped(structure: int | None) -> None:
    """Also when the backward pass runs twice."""
    levels = [dataclasses.replace(x, dropout=0.3) for x in make_config("tiny").levels]
    config = dataclasses.replace(make_config("tiny"), levels=tuple(levels))
    denoiser = randomised(config).train()
    name = "MotionBlur" if structure else "MissingPatches"
    task, x = problem(get_family(name), structure, 3), torch.randn(2, *SHAPE)

    def gradients() -> list[Tensor]:
        seed_dropout(denoiser, [4, 9])
        loss = denoiser(x, 0.7, task).square().sum()
        weights = list(denoiser.net.mid_level.parameters())
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        return [*first, *torch.autograd.grad(loss, weights)]

    kept = gradients()
    denoiser.net.recompute = frozenset({0, 1})
    for found, expected in zip(gradients(), kept, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_denoiser_can_be_sent_to_a_process_after_a_call() -> None:
    denoiser = randomised(make_config("tiny"))
    task, x = problem(get_family("MissingPatches"), None, 3), torch.randn(2, *SHAPE)
    with torch.no_grad(), use_backend("flex"):
        expected = denoiser(x, 0.7, task)
    again = sent(denoiser)
    with torch.no_grad():
        torch.testing.assert_close(again(x, 0.7, task), expected, rtol=1e-5, atol=1e-5)
