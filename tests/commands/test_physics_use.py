"""Networks, training and evaluation on operators without an SVD."""

import pytest
import torch
from helpers import assert_near, gaussian
from plain_physics import SHAPE, Padded, Rows

from datautils.photos import Photos
from degradation import (
    DenseMatrix,
    Diagonalisable,
    FromPhysics,
    GaussianNoise,
    PhysicsFamily,
    Problem,
)
from metrics import baselines
from metrics.evaluate import restorations
from metrics.pixel import consistency
from networks import Denoiser, GaussianMixture, make_config, posterior, posterior_mean
from samplers import Heun
from training.config import TrainConfig
from training.loop import Trainer

CPU = torch.device("cpu")


def test_what_needs_the_spectrum_is_refused() -> None:
    op = FromPhysics(Padded(), SHAPE, batch=2)
    problem = Problem(op, torch.zeros(2, op.rows.shape[1]))
    assert not isinstance(op, Diagonalisable)
    prior = GaussianMixture.gaussian(torch.zeros(72), torch.eye(72), SHAPE)
    for exact in (posterior, posterior_mean):
        with pytest.raises(ValueError, match=r"the exact posterior.* needs"):
            exact(prior, problem)


# ---- training, sampling, evaluation


def network() -> Denoiser:
    denoiser = Denoiser(make_config("tiny"))
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.03 * torch.randn(p.shape))
    return denoiser


def test_a_family_draws_from_the_seed_of_each_image() -> None:
    family = PhysicsFamily([Padded(0), Padded(1), Padded(2)], {"floor": 0.02})
    op = family.sample(SHAPE, None, range(30))
    drawn = op.index.tolist()
    assert set(drawn) == {0, 1, 2} and op.floor == 0.02
    assert family.sample(SHAPE, None, [7]).index.tolist() == [drawn[7]]
    assert len(PhysicsFamily(Padded()).sample(SHAPE, None, [3, 4])) == 2


def test_training_steps() -> None:
    config = TrainConfig(preset="tiny", precision="fp32", batch=4, ramp=0, noise_level=0.05)
    family = PhysicsFamily([Padded(0), Padded(1)], {"floor": 0.02})
    trainer = Trainer(config, network(), family, CPU)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    before = {name: p.clone() for name, p in trainer.denoiser.named_parameters()}
    loss = trainer.step(images, torch.full((4,), -1), 0.0)
    assert loss.isfinite() and trainer.progress.skipped == 0
    for name, p in trainer.denoiser.named_parameters():
        if "feature_degradation" in name or "attn" in name:
            assert not torch.equal(p, before[name]), name


def test_the_network_agrees_with_that_of_the_same_matrix() -> None:
    values = gaussian(40, 768) / 28
    whole = DenseMatrix(values[None].expand(2, -1, -1).float(), (3, 16, 16))
    op = FromPhysics(Rows(values, (3, 16, 16)), (3, 16, 16), batch=2, floor=0.0)
    x = gaussian(2, 3, 16, 16, dtype=torch.float32).requires_grad_()
    denoiser, y = network(), whole.H(x.detach())
    results = []
    for operator in (whole, op):
        estimate = denoiser(x, 0.7, Problem(operator, y))
        (gradient,) = torch.autograd.grad(estimate.square().sum(), x)
        results.append((estimate.detach(), gradient))
    for a, b in zip(*results, strict=True):
        assert_near(b, a, 1e-4)


def test_evaluation_does_not_depend_on_the_batch() -> None:
    denoiser, sampler = network(), Heun(num_steps=2)
    methods = {
        "sample": lambda problem, noise, draws: sampler(denoiser, noise, problem, draws),
        "fill": lambda problem, noise, draws: baselines.constant_fill(problem),
        "pinv": lambda problem, noise, draws: problem.pinv(),
    }
    found = []
    for batch in (1, 4):
        values = {}
        for restored in restorations(
            Photos(16, "heldout", size=4), {"P": PhysicsFamily([Padded(0), Padded(1)])}, methods,
            noise=GaussianNoise(0.0), indices=range(4), batch=batch, seed=0, device=CPU,
        ):  # fmt: skip
            error = consistency(restored.problem.degradation, restored.x, restored.problem.y)
            for i, index in enumerate(restored.group.indices):
                values[restored.method, index] = restored.x[i], error[i]
        found.append(values)
    for key, (image, error) in found[0].items():
        assert_near(found[1][key][0][None], image[None], 1e-4)
        assert key[0] == "sample" or error < 1e-4
