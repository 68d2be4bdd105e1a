"""Networks that get x and y in one image (EPS): what that image is, and that it says enough."""

import dataclasses

import pytest
import torch
from exact_gaussian import Gaussian
from helpers import dense, gaussian
from torch import Tensor
from zero_shot_cases import SHAPE, make_prior, operators

from degradation import FromPhysics, Mask, Problem, get_family
from networks import Denoiser, GaussianMixture, make_config, posterior_mean
from samplers import MMSE, Heun

NUMEL = 48
OPERATORS = ["mask", "matrix", "blur"]


def conditional(prior: Gaussian, problem: Problem, x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x, y] of the first problem by dense algebra; noise_level > 0."""
    H, level = dense(problem.degradation)[0], problem.levels[0]
    precision = torch.linalg.inv(prior.covariance) + torch.eye(NUMEL) / sigma**2
    precision = precision + H.T @ H / level**2
    known = torch.linalg.solve(prior.covariance, prior.mean) + x.flatten() / sigma**2
    return torch.linalg.solve(precision, known + H.T @ problem.y[0] / level**2)


@pytest.mark.parametrize("name", OPERATORS)
def test_it_is_the_mean_of_the_image_given_x_and_y_alone(name: str) -> None:
    op, sigma, level = operators(1)[name], 0.7, 0.2
    x, y = gaussian(1, *SHAPE, seed=4), gaussian(1, op.rows.shape[1], seed=5) * op.rows
    H = dense(op)[0]
    precision = torch.eye(NUMEL) / sigma**2 + H.T @ H / level**2
    expected = torch.linalg.solve(precision, x.flatten() / sigma**2 + H.T @ y[0] / level**2)
    fused = Problem(op, y, level).fuse(x, torch.tensor([sigma], dtype=torch.float64))
    torch.testing.assert_close(fused.flatten(), expected, rtol=1e-6, atol=1e-6)
    exact = Problem(op, op.H(x), 0.0)
    torch.testing.assert_close(exact.residual(exact.fuse(x + 1, sigma)), 0 * y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_exact_denoiser_is_a_function_of_it(name: str) -> None:
    """E[x0 | x, y] = E[x0 | μ⋆], an observation with covariance Σ⋆ (EPS), on a Gaussian prior."""
    prior, op, sigma, level = make_prior(), operators(1)[name], 0.7, 0.2
    x, y = gaussian(1, *SHAPE, seed=4), gaussian(1, op.rows.shape[1], seed=5) * op.rows
    problem, H = Problem(op, y, level), dense(op)[0]
    precision = torch.eye(NUMEL) / sigma**2 + H.T @ H / level**2
    mu, C = problem.fuse(x, sigma).flatten(), prior.covariance
    found = prior.mean + C @ torch.linalg.solve(C + torch.linalg.inv(precision), mu - prior.mean)
    expected = conditional(prior, problem, x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Plain:
    """A mask known by A and Aᵀ alone."""

    def __init__(self, mask: Tensor):
        self.mask = mask

    def A(self, x: Tensor) -> Tensor:
        return x * self.mask

    A_adjoint = A


def test_operators_without_an_svd_are_fused_by_iterations() -> None:
    mask = (gaussian(1, 1, 4, 4, seed=2) > 0).float()
    x, y = gaussian(1, *SHAPE, seed=4).float(), gaussian(1, *SHAPE, seed=5).float() * mask
    plain = Problem(FromPhysics(Plain(mask), SHAPE, 1), y.flatten(1), 0.3)
    known = Problem(Mask(mask, SHAPE), y.flatten(1), 0.3)
    torch.testing.assert_close(plain.fuse(x, 0.7), known.fuse(x, 0.7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditioning", ["invfusion", "blind"])
def test_a_network_learns_and_restores_from_it(conditioning: str) -> None:
    """What contradicts y in x is not seen; samplers run as with any network."""
    torch.manual_seed(0)
    config = dataclasses.replace(make_config("tiny", conditioning), fused=True)
    denoiser = Denoiser(config)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mask = (gaussian(2, 1, 16, 16) > 0).float()
    op = Mask(mask, (3, 16, 16))
    problem = Problem(op, op.H(gaussian(2, 3, 16, 16, seed=1).float()))
    x = gaussian(2, 3, 16, 16, seed=2).float()
    estimate = denoiser(x, 0.5, problem)
    torch.testing.assert_close(denoiser(x + 3 * mask, 0.5, problem), estimate)
    estimate.square().mean().backward()
    assert all(p.grad is not None for n, p in denoiser.named_parameters() if "logvar" not in n)
    with torch.no_grad():
        for sampler in (Heun(num_steps=2), MMSE()):
            assert sampler(denoiser, x, problem, None).isfinite().all()


@pytest.mark.parametrize("name", ["MotionBlur", "MissingPatches", "MatrixDegradation"])
def test_its_output_has_y_too(name: str) -> None:
    """White images: a network of zero gives E[x0 | x, y]. Any gives Hx = y if y has no noise."""
    config = dataclasses.replace(make_config("tiny"), fused=True)
    denoiser, family, shape = Denoiser(config), get_family(name), config.image_shape
    op = family.sample(shape, family.structure(3), [0])
    x, image = gaussian(1, *shape, seed=2).float(), gaussian(1, *shape, seed=3).float()
    noisy, sigma = Problem(op, op.H(image), 0.2), torch.tensor([0.7])
    variance = 1 / (1 / config.sigma_data**2 + 1 / sigma**2)
    given_x = (variance / sigma**2 * x).flatten()[None, None]
    white = GaussianMixture(torch.zeros(1, 1), given_x, variance.expand_as(given_x), None, shape)
    expected = posterior_mean(white, noisy).float()
    torch.testing.assert_close(denoiser(x, sigma, noisy), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        denoiser.net.patch_out.proj.weight.normal_()
    exact = Problem(op, op.H(image))
    residual = exact.residual(denoiser(x, sigma, exact))
    torch.testing.assert_close(residual, 0 * residual, rtol=0, atol=1e-4)


def test_rows_of_a_batch_have_their_own_levels() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(make_config("tiny"), fused=True, out_mult=3)
    denoiser, shape = Denoiser(config), config.image_shape
    with torch.no_grad():
        denoiser.net.patch_out.proj.weight.normal_(std=0.1)
    op = get_family("MissingPatches").sample(shape, 4, [0, 1])
    x, y = gaussian(2, *shape, seed=2).float(), op.H(gaussian(2, *shape, seed=3).float())
    problem, sigma = Problem(op, y, torch.tensor([0.0, 0.3])), torch.tensor([0.5, 40.0])
    both = denoiser.components(x, sigma, problem)
    for i in range(2):
        alone = denoiser.components(x[[i]], sigma[i].item(), problem[[i]])
        torch.testing.assert_close(both[0][[i]], alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both[1][[i]], alone[1], rtol=1e-4, atol=1e-4)
    assert both[1].abs().max() > 0  # components leave what is known exactly as it is
    torch.testing.assert_close(op.H(both[1])[0], torch.zeros_like(op.H(both[1])[0]))


def test_a_network_takes_operators_without_an_svd() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(make_config("tiny"), fused=True)
    denoiser, shape = Denoiser(config), config.image_shape
    with torch.no_grad():
        denoiser.net.patch_out.proj.weight.normal_(std=0.1)
    mask = (gaussian(1, 1, 16, 16, seed=2) > 0).float()
    x, y = gaussian(1, *shape, seed=4).float(), gaussian(1, *shape, seed=5).float() * mask
    plain, known = FromPhysics(Plain(mask), shape, 1), Mask(mask, shape)
    found, expected = (denoiser(x, 0.7, Problem(op, y.flatten(1), 0.3)) for op in (plain, known))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["indi", "unrolled"])
def test_objectives_that_cannot_be_fused(objective: str) -> None:
    with pytest.raises(ValueError, match=r"a fused network .* leave out one"):
        dataclasses.replace(make_config("tiny"), fused=True, objective=objective)
