"""What every zero-shot sampler is held to: on any operator, in any batch, counted, checked."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from exact_gaussian import Gaussian, Generator
from helpers import gaussian
from plain_physics import Rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zero_shot_cases import COUNTS, NUMEL, QUICK, SHAPE, make_prior, operators, posed

from degradation import (
    DenseMatrix,
    Draws,
    FromPhysics,
    Mask,
    NullOperator,
    Problem,
)
from samplers import (
    CountingDenoiser,
    Guided,
    Tiled,
    Tiling,
    check_operator,
    make_sampler,
    sampler_names,
)
from samplers.base import SAMPLERS, Run
from zero_shot import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MGPS,
    DDNMPlus,
    MCGdiff,
    PiGDM,
    ZeroShot,
)
from zero_shot.base import linearised

each_sampler = pytest.mark.parametrize("sampler", QUICK.values(), ids=QUICK.keys())


@pytest.fixture
def prior() -> Gaussian:
    return make_prior()


# ---- what they are


def test_all_are_known_by_name() -> None:
    names = sampler_names("denoising")
    known = {name for name in names if issubclass(SAMPLERS[name], ZeroShot)}
    assert known == {name.split()[0] for name in QUICK}
    for name in known:
        assert dataclasses.is_dataclass(SAMPLERS[name])
        assert make_sampler(name) == SAMPLERS[name]()
        assert SAMPLERS[name].__doc__ and "20" in SAMPLERS[name].__doc__  # year of its source


@pytest.mark.parametrize("name", COUNTS)
def test_evaluations_and_backward_passes_by_default(name: str) -> None:
    sampler, seen = make_sampler(name), 0
    if name == "daps":  # steps of which the denoiser knows nothing
        sampler = DAPS(langevin_steps=1)

    def denoiser(x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        nonlocal seen
        seen += x.requires_grad
        return 0.5 * x

    counter = CountingDenoiser(denoiser, 1)
    op = Mask(torch.ones(1, 1, 1, 2), (1, 1, 2))
    problem = Problem(op, torch.zeros(1, 2), 0.1)
    sampler(counter, torch.zeros(1, 1, 1, 2), problem, Generator())
    assert (counter.calls, counter.backward_passes) == COUNTS[name]
    assert seen == counter.backward_passes  # a graph is built where it is walked back
    assert bool(seen) == ("gradient" in sampler.needs)  # type: ignore[attr-defined]


@each_sampler
def test_the_denoiser_is_told_the_class_alone_and_once(sampler: Any, prior: Gaussian) -> None:
    problem = posed(operators(2)["mask"], 0.1).with_classes(torch.tensor([5, -1]))
    seen: dict[int, set[int]] = {}

    def denoiser(x: Tensor, sigma: Tensor | float, given: Problem) -> Tensor:
        seen.setdefault(len(x), set()).add(id(given))
        assert x.shape == (len(given), *SHAPE)
        assert isinstance(given.degradation, NullOperator)
        assert given.class_labels.tolist() == [5, -1] * (len(x) // 2)
        assert isinstance(sigma, float)  # a tensor on a GPU would have to be waited for
        return prior(x, sigma, given)

    sampler(denoiser, gaussian(2, *SHAPE), problem, Draws([0, 1]))
    assert set(seen) == ({2, 6} if isinstance(sampler, MCGdiff) else {2})
    assert all(len(known) == 1 for known in seen.values())  # an object for each size


def by_class(prior: Gaussian) -> Any:
    """A denoiser for which a class moves the mean."""

    def denoiser(x: Tensor, sigma: Tensor | float, given: Problem) -> Tensor:
        shift = 0.1 * given.class_labels.view(-1, 1, 1, 1)
        return prior(x - shift, sigma, given) + shift

    return denoiser


@each_sampler
def test_guidance_doubles_the_calls_of_the_network(sampler: Any, prior: Gaussian) -> None:
    problem = posed(operators(2)["mask"], 0.1).with_classes(torch.tensor([5, 3]))
    network = CountingDenoiser(by_class(prior))
    counter = CountingDenoiser(Guided(network, 2.0))
    guided = sampler(counter, gaussian(2, *SHAPE), problem, Draws([0, 1]))
    assert network.calls == 2 * counter.calls > 2
    assert network.backward_passes == 2 * counter.backward_passes
    assert bool(counter.backward_passes) == ("gradient" in sampler.needs)
    plain = sampler(by_class(prior), gaussian(2, *SHAPE), problem, Draws([0, 1]))
    assert not torch.allclose(guided, plain)
    alone = sampler(Guided(by_class(prior), 2.0), gaussian(2, *SHAPE)[1:], problem[[1]], Draws([1]))
    torch.testing.assert_close(alone, guided[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("batch", "largest"), [(1, 2), (5, 4), (7, 6), (100, 14)])
def test_particles_are_evaluated_together(batch: int, largest: int, prior: Gaussian) -> None:
    """As far as `batch` goes; the samples and the evaluations are the same."""
    problem = posed(operators(2)["matrix"], 0.1).with_classes(torch.tensor([5, 3]))
    noise, sizes = gaussian(2, *SHAPE), []
    expected = MCGdiff(5, particles=7, batch=1)(by_class(prior), noise, problem, Draws([0, 1]))

    def denoiser(x: Tensor, sigma: Tensor | float, given: Problem) -> Tensor:
        sizes.append(len(x))
        return by_class(prior)(x, sigma, given)

    network = CountingDenoiser(denoiser)
    counter = CountingDenoiser(Guided(network, 1.0), 2)
    found = MCGdiff(5, particles=7, batch=batch)(counter, noise, problem, Draws([0, 1]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert counter.calls == 4 * 7 + 1
    assert max(sizes) == largest and len(sizes) == network.calls == 4 * -(-14 // largest) + 1


def test_particles_of_guided_networks_are_counted(prior: Gaussian) -> None:
    problem = posed(operators(2)["mask"], 0.1).with_classes(torch.tensor([5, 3]))
    network = CountingDenoiser(by_class(prior))
    counter = CountingDenoiser(Guided(network, 2.0), 2)
    MCGdiff(4, particles=3)(counter, gaussian(2, *SHAPE), problem, Draws([0, 1]))
    assert (counter.calls, network.calls) == (3 * 3 + 1, 2 * (3 + 1))


@pytest.mark.parametrize(("batch", "calls"), [(4, 2 * 2 + 1), (5, 2 * 2 + 1), (16, 2 * 1 + 1)])
def test_particles_of_tiled_networks_are_counted(batch: int, calls: int) -> None:
    """Evaluations are those of the sampler, calls of the network those that are made."""
    network = CountingDenoiser(lambda x, sigma, given: x / 2)
    tiled = Tiled(network, Tiling(SHAPE[1:], SHAPE[1:]), batch)
    counter = CountingDenoiser(tiled, 1)
    problem = posed(operators(1)["mask"], 0.1)
    MCGdiff(3, particles=8)(counter, gaussian(1, *SHAPE), problem, Draws([0]))
    assert (counter.calls, network.calls) == (2 * 8 + 1, calls)


# ---- on every operator


@each_sampler
def test_float32_stays_finite_whatever_is_measured(sampler: Any, prior: Gaussian) -> None:
    """With noise and without."""
    masks = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    row = torch.zeros(2, 3, NUMEL)
    row[1, 0, 5] = 1
    cases = [Mask(masks, SHAPE), DenseMatrix(row, SHAPE), NullOperator(2, SHAPE)]
    cases += [op.to(torch.float32) for op in operators(2).values()]
    noise, levels = gaussian(4, *SHAPE, dtype=torch.float32), torch.tensor([0.0, 0.0, 0.1, 0.1])
    for op in cases:
        problem = posed(op[torch.tensor([0, 1, 0, 1])], levels)
        out = sampler(prior.single(), noise, problem, Draws(range(4)))
        assert out.dtype == torch.float32 and out.shape == noise.shape
        assert out.isfinite().all() and out.abs().max() < 100, type(op)


@each_sampler
def test_an_image_has_draws_of_its_own(sampler: Any, prior: Gaussian) -> None:
    """Also where the images of a batch differ in the level of their noise."""
    noise, seeds = gaussian(3, *SHAPE), [5, 6, 7]
    for op in operators(3).values():
        problem = posed(op, torch.tensor([0.0, 0.1, 0.7], dtype=torch.float64))
        batch = sampler(prior, noise, problem, Draws(seeds))
        assert not torch.allclose(batch[0], batch[1])
        for i in (0, 2):
            alone = sampler(prior, noise[i : i + 1], problem[[i]], Draws(seeds[i : i + 1]))
            torch.testing.assert_close(alone, batch[i : i + 1], rtol=1e-9, atol=1e-9)


@each_sampler
def test_operators_without_an_svd(sampler: Any, prior: Gaussian) -> None:
    """The same matrix, once with its SVD and once known by H and Hᵀ alone."""
    matrix = gaussian(9, NUMEL) / NUMEL**0.5
    physics = FromPhysics(Rows(matrix, SHAPE), SHAPE, batch=2, tol=1e-12, floor=0.0)
    levels = torch.tensor([0.0, 0.2], dtype=torch.float64)
    problem = posed(physics.to(torch.float64), levels)
    noise, calls = gaussian(2, *SHAPE), CountingDenoiser(prior)
    if "spectrum" in sampler.needs:
        message = f"sampler {type(sampler).__name__} needs the singular value decomposition of the "
        for refuse in (
            lambda: check_operator(sampler, physics),
            lambda: sampler(calls, noise, problem, Draws([0, 1])),
        ):
            with pytest.raises(ValueError, match=message + "operator, which FromPhysics does not"):
                refuse()
        assert calls.calls == 0
        return
    check_operator(sampler, physics)
    found = sampler(calls, noise, problem, Draws([0, 1]))
    op = DenseMatrix(matrix[None].repeat(2, 1, 1), SHAPE)
    expected = sampler(prior, noise, Problem(op, problem.y, levels), Draws([0, 1]))
    # The steps of Langevin's follow ‖H‖, which is estimated where there is no SVD.
    langevin = isinstance(sampler, DAPS) and sampler.inner == "langevin"
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 if langevin else 1e-6)


CONSISTENT = [name for name in QUICK if name.split()[0] in ("ddrm", "ddnm", "ddnm_plus", "mcgdiff")]


@pytest.mark.parametrize("name", CONSISTENT)
@pytest.mark.parametrize("kind", ["mask", "matrix", "blur"])
def test_samples_explain_a_measurement_without_noise(name: str, kind: str, prior: Gaussian) -> None:
    op = operators(3)[kind].to(torch.float32)
    problem = posed(op)
    noise = gaussian(3, *SHAPE, dtype=torch.float32)
    out = QUICK[name](prior.single(), noise, problem, Draws([0, 1, 2]))
    assert problem.residual(out).abs().max() < 1e-4
    assert problem.residual(noise).abs().max() > 0.1


@each_sampler
def test_without_a_measurement_y_does_not_matter(sampler: Any, prior: Gaussian) -> None:
    noise, op = gaussian(2, *SHAPE), NullOperator(2, SHAPE)
    outs = [
        sampler(prior, noise, Problem(op, torch.full((2, 1), value), level), Draws([0, 1]))
        for value, level in ((0.0, 0.1), (9.0, 0.1))
    ]
    assert torch.equal(*outs)


@each_sampler
def test_rows_that_do_not_exist_do_not_matter(sampler: Any, prior: Gaussian) -> None:
    """Half of the pixels are hidden: what stands in their rows of y is not looked at."""
    problem = posed(operators(2)["mask"], 0.1)
    rows = problem.degradation.rows
    assert 0 < rows.sum() < rows.numel()
    strange = Problem(problem.degradation, torch.where(rows, problem.y, 7.0), 0.1)
    noise = gaussian(2, *SHAPE)
    outs = [sampler(prior, noise, given, Draws([0, 1])) for given in (problem, strange)]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)


@each_sampler
def test_noise_and_problem_are_left_alone(sampler: Any, prior: Gaussian) -> None:
    noise, problem = gaussian(2, *SHAPE), posed(operators(2)["matrix"], 0.1)
    before = noise.clone(), problem.y.clone(), problem.pinv().clone()
    out = sampler(prior, noise, problem, Draws([0, 1]))
    assert out.dtype == torch.float64
    for now, then in zip((noise, problem.y, problem.pinv()), before, strict=True):
        assert torch.equal(now, then)


# ---- precision


@each_sampler
def test_autocast_is_for_the_network_alone(sampler: Any, prior: Gaussian) -> None:
    """What a sampler does itself is as exact under autocast as without."""
    weight = 0.1 * gaussian(NUMEL, NUMEL, dtype=torch.float32)
    single = prior.single()

    def denoiser(x: Tensor, sigma: Tensor | float, given: Problem) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return single(x, sigma, given) + 1e-3 * (x.flatten(1) @ weight).tanh().view(x.shape)

    noise = gaussian(2, *SHAPE, dtype=torch.float32)
    for op in operators(2).values():
        problem = posed(op.to(torch.float32), torch.tensor([0.0, 0.1]))
        expected = sampler(denoiser, noise, problem, Draws([0, 1]))
        with torch.autocast("cpu", torch.bfloat16):
            found = sampler(denoiser, noise, problem, Draws([0, 1]))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@each_sampler
def test_a_problem_in_float64_and_a_network_in_float32(sampler: Any, prior: Gaussian) -> None:
    single, noise = prior.single(), gaussian(2, *SHAPE, dtype=torch.float32)

    def denoiser(x: Tensor, sigma: Tensor | float, given: Problem) -> Tensor:
        return single(x.float(), sigma, given)

    for op in operators(2).values():
        problem = posed(op, 0.3)
        found = sampler(denoiser, noise, problem, Draws([0, 1]))
        single_problem = Problem(op.to(torch.float32), problem.y.float(), 0.3)
        expected = sampler(denoiser, noise, single_problem, Draws([0, 1]))
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=2e-3)


# ---- gradients, memory

DIFFERENTIATING = [sampler for sampler in QUICK.values() if "gradient" in sampler.needs]


def test_backward_passes_run_in_full_precision() -> None:
    """What a denoiser keeps in float32 under autocast has a gradient in float32."""
    weight, x, v = (gaussian(*shape, dtype=torch.float32) for shape in ((48, 48), (2, 48), (2, 48)))

    def denoiser(x: Tensor, sigma: Tensor | float, given: Problem) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (x.flatten(1) @ weight).view(x.shape)

    problem = posed(NullOperator(2, SHAPE))
    run = Run(denoiser, problem, problem, Draws([0, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        pullback = linearised(run, x.view(2, *SHAPE), 1.0)[1]
        found = pullback(v.view(2, *SHAPE))
    torch.testing.assert_close(found.flatten(1), v @ weight.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", DIFFERENTIATING)
def test_denoisers_without_a_gradient_are_refused(sampler: Any, prior: Gaussian) -> None:
    problem = posed(operators(2)["matrix"], 0.1)
    with pytest.raises(ValueError, match="needs the gradient of the denoiser, which has none"):
        sampler(torch.no_grad()(prior), gaussian(2, *SHAPE), problem, Draws([0, 1]))


@each_sampler
def test_no_graph_outlives_a_step(sampler: Any) -> None:
    """But for DDRM, DDNM and DDNM+, which can be unrolled."""
    weight = torch.tensor(0.5, requires_grad=True)
    problem = posed(operators(2)["mask"].to(torch.float32), 0.1)
    noise = gaussian(2, *SHAPE, dtype=torch.float32)
    out = sampler(lambda x, sigma, given: weight * x, noise, problem, Draws([0, 1]))
    assert out.requires_grad == isinstance(sampler, DDRM | DDNM | DDNMPlus)
    if out.requires_grad:
        assert torch.autograd.grad(out.square().sum(), weight)[0] != 0


class Unwatched(TorchDispatchMode):
    """Raises where a value of a tensor is asked for: on a GPU that waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() != "aten::_local_scalar_dense"
        assert func.name() not in ("aten::nonzero", "aten::equal", "aten::masked_select")
        return func(*args, **(kwargs or {}))


# torch's Adam counts its steps in a tensor that stays on the CPU.
WITHOUT_ADAM = [name for name in QUICK if name not in ("mgps", "reddiff")]


@pytest.mark.parametrize("name", WITHOUT_ADAM)
@pytest.mark.parametrize("kind", ["mask", "matrix", "blur"])
def test_no_step_waits_for_the_device(name: str, kind: str, prior: Gaussian) -> None:
    noise, problem = gaussian(2, *SHAPE), posed(operators(2)[kind], 0.1)
    with Unwatched():
        QUICK[name](prior, noise, problem, Generator())


def test_the_watch_sees() -> None:
    for ask in (Tensor.item, bool, float, torch.nonzero):
        with Unwatched(), pytest.raises(AssertionError):
            ask(torch.ones(()))


# ---- options


def wrong_options() -> list[tuple[str, str, str]]:
    """(sampler, option, text) that no sampler may accept."""
    wrong = {"int": "-1", "float": "nan", "str": "nonsense", "bool": "maybe", "float | None": "nan"}
    return [
        (name, field.name, wrong[getattr(field.type, "__name__", str(field.type))])
        for name in COUNTS
        for field in dataclasses.fields(SAMPLERS[name])
    ]


@pytest.mark.parametrize(("name", "option", "text"), wrong_options())
def test_every_option_is_checked(name: str, option: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"option {option}='?{text}") as refused:
        make_sampler(name, {option: text})
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddrm", {"eta": "1.5"}, "DDRM option eta=1.5 must lie between 0 and 1"),
        ("ddrm", {"sigma_min": "90"}, "DDRM option sigma_min=90.0 must lie between 1e-09 and 80.0"),
        ("ddnm", {"released": "1"}, "sampler 'ddnm' option released='1' must be true or false"),
        ("pigdm", {"form": "both"}, "PiGDM option form=both must be one of guidance, score"),
        ("daps", {"inner": "hmc"}, "DAPS option inner=hmc must be one of langevin, exact"),
        ("daps", {"ode_sigma_min": "0.2"}, "DAPS option ode_sigma_min=0.2"),
        ("daps", {"sigma_min": "0"}, "DAPS option sigma_min=0.0"),
        ("mgps", {"schedule": "mnist"}, "MGPS option schedule=mnist must be one of ffhq, imagenet"),
        ("mgps", {"num_steps": "3"}, "MGPS option num_steps=3 must lie between 4 and 1000"),
        ("pnpdm", {"rho_last": "20"}, "PnPDM option rho_start=10.0 must lie between 20.0 and 80"),
        ("pnpdm", {"rho_last": "0"}, "PnPDM option rho_last=0.0 must lie between 0.002 and 80.0"),
        ("mcgdiff", {"particles": "0"}, "MCGdiff option particles=0"),
    ],
)
def test_refusals_say_what_would_be_accepted(
    name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(name, options)


@pytest.mark.parametrize(
    "sampler",
    [
        MGPS(4, midpoint=0.01),
        MGPS(20, midpoint=0.01),
        MGPS(9, midpoint=0.99),
        DAPS(3, sigma_min=0.2, ode_sigma_min=0.2, langevin_steps=2),
        DAPS(3, sigma_min=100.0, ode_sigma_min=100.0, langevin_steps=2),
    ],
)
def test_options_at_the_end_of_their_range_run_to_the_end(sampler: Any, prior: Gaussian) -> None:
    problem = posed(operators(2)["mask"], 0.1)
    out = sampler(prior, gaussian(2, *SHAPE), problem, Draws([0, 1]))
    assert out.isfinite().all()


def test_options_are_read_from_text() -> None:
    assert make_sampler("ddnm", {"released": "true", "num_steps": "7"}) == DDNM(7, released=True)
    assert make_sampler("dps", {"released": "False"}) == DPS(released=False)
    assert make_sampler("pigdm", {"form": "score"}) == PiGDM(form="score")


def test_samplers_are_values() -> None:
    for sampler in QUICK.values():
        assert copy.copy(sampler) == sampler and hash(sampler) == hash(copy.copy(sampler))
