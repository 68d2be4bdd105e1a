"""NPPC: orthogonal components, their loss written out, and what it learns of an exact posterior."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import gaussian
from runs import CPU, settings
from torch import Tensor, nn

from degradation import Box, Draws, GaussianNoise, Mask, Problem
from networks import Denoiser, GaussianMixture, make_config, posterior, posterior_mean
from samplers import NPPC
from samplers.nppc import orthogonal
from training.loss import NPPCLoss
from training.trainer import Trainer

K = 3


def network(components: int = K, noise: float = 0.05) -> Denoiser:
    """Weights all differ from zero if there is noise."""
    torch.manual_seed(0)
    config = dataclasses.replace(make_config("tiny"), objective="nppc", out_mult=1 + components)
    denoiser = Denoiser(config).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            p += noise * torch.randn(p.shape)
    return denoiser


def posed(batch: int = 2) -> tuple[Tensor, Problem]:
    x = gaussian(batch, 3, 16, 16, seed=1).float()
    op = Mask((gaussian(batch, 1, 16, 16) > 0).float(), (3, 16, 16))
    return x, GaussianNoise(0.1).measure(op, x, Draws(range(batch)))


# ---- components


def test_components_are_those_of_a_qr_decomposition() -> None:
    raw = gaussian(2, 4, 3, 5, 5)
    found = orthogonal(raw).flatten(2)
    Q, R = torch.linalg.qr(raw.flatten(2).mT)
    torch.testing.assert_close(found.mT, Q * R.diagonal(dim1=1, dim2=2)[:, None])


def test_no_gradient_passes_through_what_is_projected_on() -> None:
    raw = gaussian(1, 2, 1, 2, 2).requires_grad_()
    first, second = orthogonal(raw)[0].flatten(1)
    unit = first.detach() / first.detach().norm()
    (gradient,) = torch.autograd.grad(second[0], raw)
    assert (gradient[0, 0] == 0).all()
    expected = torch.eye(4, dtype=torch.float64)[0] - unit[0] * unit
    torch.testing.assert_close(gradient[0, 1].flatten(), expected)


@torch.no_grad()
def test_components_come_with_their_deviations_the_largest_first() -> None:
    denoiser, (_, problem) = network(), posed()
    noise = gaussian(2, 3, 16, 16, seed=2).float()
    mean, components, deviations = (
        NPPC()(denoiser, noise, problem, Draws([0])),
        *NPPC().components(denoiser, noise, problem)[1:],
    )
    assert torch.equal(mean, denoiser(100 * noise, 100.0, problem))
    gram = torch.einsum("bkchw,blchw->bkl", components, components)
    torch.testing.assert_close(gram, torch.diag_embed(deviations**2), rtol=1e-4, atol=1e-5)
    assert (deviations.diff(dim=1) < 0).all()
    raw = denoiser.components(100 * noise, 100.0, problem)[1].flatten(2)
    span = torch.linalg.matrix_rank(torch.cat((raw, components.flatten(2)), 1), rtol=1e-4)
    assert (span == K).all()


@torch.no_grad()
def test_a_new_network_has_components_of_zero() -> None:
    _, components, deviations = NPPC().components(
        network(noise=0), torch.ones(2, 3, 16, 16), posed()[1]
    )
    assert (components == 0).all() and (deviations == 0).all()


# ---- the loss


@pytest.mark.parametrize(("step", "first", "second"), [(0, 0, 0), (16, 1 / 4, 1 / 16), (99, 1, 1)])
@torch.no_grad()
def test_the_loss_is_its_formula(step: int, first: float, second: float) -> None:
    loss, (x, problem) = NPPCLoss(network()), posed()
    loss.step = step
    noise = loss.noise(Draws([0, 1]))
    assert noise.shape == (2, 1 + K, 3, 16, 16)
    mean, raw = loss.denoiser.components(100 * noise[:, 0], 100.0, problem)
    expected = []
    for i in range(2):
        e = (x[i] - mean[i]).flatten().double()
        Q, R = torch.linalg.qr((raw[i] + 1e-4 * noise[i, 1:]).flatten(1).double().T)
        variances = R.diagonal().square()
        loss_w = sum(1 - (Q[:, k] @ e) ** 2 / (e @ e) for k in range(K))
        s = max(variances.sum(), e @ e / 10)
        loss_sigma = sum((variances[k] - (Q[:, k] @ e) ** 2) ** 2 / s**2 for k in range(K))
        mse = (e**2).mean()
        expected.append(mse + 0.02 * first * loss_w + 0.002 * second * loss_sigma)
    found = loss(x, torch.full((2,), 100.0), noise, problem)
    torch.testing.assert_close(found, torch.stack(expected).float(), rtol=1e-4, atol=0)


def test_gradients_are_finite_from_zeros_on_and_reach_every_component() -> None:
    config = settings(objective="nppc", degradation="Box", lr=1e-2, ramp=0)
    trainer = Trainer(config, network(noise=0), Box(), CPU)
    images = (gaussian(4, 3, 16, 16) * 40 + 128).clamp(0, 255).to(torch.uint8)
    for _ in range(3):  # the first one knows the mean alone
        trainer.step(images, torch.full((4,), -1), 0.0)
    trainer.check_skips()
    assert trainer.progress.skipped == 0 and trainer.loss_module.step == 2
    rows = trainer.denoiser.net.patch_out.proj.weight.view(4, 1 + K, 3, -1)
    assert rows.isfinite().all() and (rows.abs().amax((0, 2, 3)) > 1e-4).all()


# ---- the exact world


SHAPE = (3, 4, 4)
NOISE = 0.05


def quadrants() -> tuple[GaussianMixture, Tensor]:
    """A prior of two directions in each quadrant of an image, correlated from one to the next,
    and four masks, each of which hides a quadrant."""
    two = torch.linalg.qr(gaussian(12, 2, seed=5)).Q.view(3, 2, 2, 2)
    basis, masks = torch.zeros(*SHAPE, 4, 2, dtype=torch.float64), torch.ones(4, 1, 4, 4)
    for q, (i, j) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        basis[:, i : i + 2, j : j + 2, q] = two
        masks[q, :, i : i + 2, j : j + 2] = 0
    between = 0.5 + 0.5 * torch.eye(4, dtype=torch.float64)
    variances = torch.tensor([0.6, 0.25], dtype=torch.float64).diag()
    B = basis.reshape(48, 8)
    covariance = B @ torch.kron(between, variances) @ B.T + NOISE**2 * torch.eye(48)
    return GaussianMixture.gaussian(torch.zeros(48), covariance, SHAPE), masks


class Learner(nn.Module):
    """Exact posterior means and, for each of four masks, raw components that are learnt."""

    def __init__(self, prior: GaussianMixture):
        super().__init__()
        self.config = SimpleNamespace(image_shape=SHAPE, out_mult=3)
        self.prior = prior
        self.raw = nn.Parameter(torch.zeros(4, 2, *SHAPE))
        self.linear: Tensor | None = None

    def log_variance(self, sigma: Tensor) -> Tensor:
        return sigma

    def components(
        self, x: Tensor, sigma: Tensor | float, problem: Problem, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y = problem.degradation.H_adjoint(problem.y).flatten(1)
        if self.linear is None:  # the estimate is linear in y: that of each unit vector
            op = problem.degradation[[0, 1, 2, 3]]
            units = [op.H(e.expand(4, *SHAPE)) for e in torch.eye(48).view(48, *SHAPE)]
            means = [posterior_mean(self.prior, Problem(op, unit, NOISE)) for unit in units]
            self.linear = torch.stack(means, -1).flatten(1, 3)
        kinds = len(x) // 4
        estimate = self.linear.repeat(kinds, 1, 1) @ y[:, :, None]
        return estimate.view(x.shape), self.raw.repeat(kinds, 1, 1, 1, 1)


def test_components_of_many_operators_become_those_of_the_exact_posterior() -> None:
    """Within 4 degrees of the true leading subspace, variances within 15 %.

    With ‖e‖² in place of s they come out at a quarter and two fifths.
    """
    prior, masks = quadrants()
    root = torch.linalg.cholesky(prior.covariance()[0]).float()
    loss = NPPCLoss(learner := Learner(prior))  # type: ignore[arg-type]
    steps, batch = 400, 64
    optimizer = torch.optim.Adam([learner.raw], 2e-2, (0.9, 0.99))
    op = Mask(masks.repeat(batch // 4, 1, 1, 1), SHAPE)
    for step in range(steps):
        x = (gaussian(batch, 48, seed=step).float() @ root.T).view(batch, *SHAPE)
        y = op.H(x) + NOISE * gaussian(batch, 48, seed=steps + step).float() * op.rows
        noise = gaussian(batch, 3, *SHAPE, seed=step + 2 * steps).float()
        loss.step = step
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss(x, torch.full((batch,), 100.0), noise, Problem(op, y, NOISE)).mean().backward()
        optimizer.step()
    exact = posterior(prior, Problem(op[[0, 1, 2, 3]], y[:4], NOISE))
    values, vectors = torch.linalg.eigh(exact.covariance())
    with torch.no_grad():
        _, components, deviations = NPPC().components(learner, x[:4], Problem(op, y, NOISE)[:4])
    found = F.normalize(components.flatten(2).double(), dim=2)
    cosines = torch.linalg.svdvals(found @ vectors[:, :, -2:])
    assert cosines.min().acos().rad2deg() < 4
    ratios = deviations.double().square() / values[:, -2:].flip(1)
    assert (ratios - 1).abs().max() < 0.15, ratios
