"""The losses: their formulas, the label of the augmentation, and gradients of all parameters."""

from dataclasses import replace

import pytest
import torch
from helpers import gaussian
from torch import Tensor

from degradation import Draws, GaussianNoise, Mask, Problem
from networks import PRESETS, Denoiser
from samplers import MMSE
from training.loss import DenoisingLoss, MMSELoss, draw_sigma

LOSSES = [DenoisingLoss, MMSELoss]


@pytest.fixture
def denoiser() -> Denoiser:
    """A small network none of whose layers is left at zero; two classes."""
    network = Denoiser(replace(PRESETS["tiny"], num_classes=2)).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def arguments(sigma: float = 100.0) -> tuple[Tensor, Tensor, Tensor, Problem]:
    """Images, levels, noise and noisy in-painting problems, one of them without its class."""
    images, noise = gaussian(2, 3, 3, 16, 16, dtype=torch.float32)
    op = Mask((gaussian(3, 1, 16, 16, seed=5) > 0).float(), (3, 16, 16))
    labels = torch.tensor([0, 1, -1])
    problem = GaussianNoise(0.1).measure(op, images, Draws([1, 2, 3]), labels)
    return images, torch.full((3,), sigma), noise, problem


@torch.no_grad()
def test_mmse_loss_is_the_plain_error_of_the_mmse_sampler(denoiser):
    images, sigma, noise, problem = arguments()
    loss = MMSELoss(denoiser)(images, sigma, noise, problem)
    estimate = MMSE()(denoiser, noise, problem, Draws([0, 0, 0]))
    expected = [(estimate[i] - images[i]).square().mean() for i in range(3)]
    torch.testing.assert_close(loss, torch.stack(expected))


@torch.no_grad()
def test_mmse_loss_hides_the_image_and_shows_the_problem(denoiser):
    """Other images with the same problem give the same estimates; another class or level not."""
    images, sigma, noise, problem = arguments()
    seen = []
    denoiser.register_forward_hook(lambda module, given, out: seen.append(out))
    other = images + 3
    loss = MMSELoss(denoiser)
    loss(images, sigma, noise, problem)
    loss(other, sigma, noise, problem)
    loss(images, sigma, noise, problem.with_classes(torch.tensor([1, 1, 1])))
    loss(images, sigma, noise, Problem(problem.degradation, problem.y, 0.5, problem.class_labels))
    assert torch.equal(seen[0], seen[1])
    assert (seen[0] - seen[2]).abs().amax((1, 2, 3))[[0, 2]].min() > 1e-4
    assert (seen[0] - seen[3]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("sigma", [100.0, 50.0])
def test_mmse_loss_has_no_weights(denoiser, sigma):
    """Twice the error costs four times as much, at any level, whatever the uncertainty says."""
    images, levels, noise, problem = arguments(sigma)
    loss = MMSELoss(denoiser)
    estimate = denoiser(sigma * noise, sigma, problem)
    near, far = (loss(estimate + step, levels, noise, problem) for step in (0.1, 0.2))
    torch.testing.assert_close(near, torch.full((3,), 0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(far, 4 * near, rtol=1e-3, atol=0)
    denoiser.logvar.linear.bias += 2
    torch.testing.assert_close(loss(estimate + 0.1, levels, noise, problem), near)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_parameter_takes_part(denoiser, kind):
    loss = kind(denoiser)
    loss(*arguments(1.0), augment_labels=torch.randn(3, 9)).sum().backward()
    trained = [name for name, p in loss.named_parameters() if p.requires_grad]
    idle = [name for name in trained if loss.get_parameter(name).grad is None]
    assert trained and not idle


def test_mmse_training_leaves_the_uncertainty_alone(denoiser):
    loss = MMSELoss(denoiser)
    before = [p.detach().clone() for p in denoiser.logvar.parameters()]
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    start = loss(*arguments()).mean()
    for _ in range(3):
        optimizer.zero_grad()
        loss(*arguments()).mean().backward()
        optimizer.step()
    assert loss(*arguments()).mean() < start
    assert all(map(torch.equal, before, denoiser.logvar.parameters()))


@torch.no_grad()
@pytest.mark.parametrize("kind", LOSSES)
def test_the_network_is_told_of_the_augmentation(denoiser, kind):
    loss, given = kind(denoiser), arguments()
    plain = loss(*given)
    torch.testing.assert_close(loss(*given, augment_labels=torch.zeros(3, 9)), plain)
    labels = torch.zeros(3, 9)
    labels[1, 0] = 1
    told = loss(*given, augment_labels=labels)
    assert told[1] != plain[1]
    torch.testing.assert_close(told[[0, 2]], plain[[0, 2]])


def test_a_share_of_one_draws_the_level_of_the_mmse_sampler():
    sigma = draw_sigma(Draws(range(500)), -0.8, 1.6, mmse_share=1.0)
    assert (sigma == MMSE().sigma).all()
