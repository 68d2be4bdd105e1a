"""ASeqDIP: an untrained network that is fitted to the measurement of one image."""

import torch
from helpers import gaussian
from torch import Tensor

from degradation import Draws, GaussianNoise, LinearOperator, Mask, NullOperator, Problem
from metrics.pixel import consistency
from networks import ASeqDIP
from networks.aseqdip import _drawn

SHAPE = (3, 8, 8)


def smooth(batch: int) -> Tensor:
    """A slope in each colour."""
    u = torch.linspace(-0.8, 0.8, 8)
    return torch.stack((u[:, None].expand(8, 8), u.expand(8, 8), 0 * u.expand(8, 8) + 0.5)).expand(
        batch, -1, -1, -1
    )


def masked(batch: int) -> Problem:
    op = Mask((gaussian(batch, 1, 8, 8) > 0).float(), SHAPE)
    return GaussianNoise(0.0).measure(op, smooth(batch), Draws(range(batch)))


def restored(problem: Problem, seeds: list[int], **options: float) -> Tensor:
    with torch.no_grad():  # as an evaluation calls it
        return ASeqDIP(**options)(problem, problem.pinv(), Draws(seeds))


def error(x: Tensor) -> float:
    return (x - smooth(len(x))).square().mean().item()


def test_what_a_mask_hides_is_filled_in() -> None:
    problem = masked(1)
    early, late = (restored(problem, [0], outer=n, lr=3e-3) for n in (4, 20))
    far, near = (consistency(problem.degradation, x, problem.y).item() for x in (early, late))
    assert near < 0.1 * far and near < 1e-3
    assert error(late) < 0.1 * error(problem.pinv())


def test_an_image_depends_on_its_seed_alone() -> None:
    state = torch.get_rng_state()
    problem = masked(3)
    together = restored(problem, [5, 6, 7], outer=3, lr=1e-3)
    alone = restored(problem[1:2], [6], outer=3, lr=1e-3)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(restored(problem[1:2], [7], outer=3, lr=1e-3), alone)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are used up


def test_the_first_step_is_that_of_the_paper() -> None:
    """Of Adam on ‖Hf(u) − y‖² + λ‖f(u) − u‖² at u = H†y, then u ← f(u)."""
    problem = masked(1)
    network, u = _drawn(3, 4), problem.pinv()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    data = (network(u) - smooth(1))[problem.degradation.H(torch.ones(1, *SHAPE)).view(u.shape) > 0]
    (data.square().mean() + 0.3 * (network(u) - u).square().mean()).backward()
    optimizer.step()
    found = restored(problem, [4], outer=1, inner=1, weight=0.3, lr=1e-3)
    torch.testing.assert_close(found, network(u).detach(), atol=1e-5, rtol=1e-4)


def test_the_weights_are_drawn_as_the_authors_do() -> None:
    weights = torch.cat([p.flatten() for n, p in _drawn(3, 0).named_parameters() if p.dim() == 4])
    assert abs(weights.std().item() / 0.02 - 1) < 0.01 and abs(weights.mean().item()) < 1e-4


def test_sides_and_measurements_of_any_number() -> None:
    operators: list[LinearOperator] = [
        NullOperator(1, (3, 5, 7)),
        Mask(torch.ones(1, 1, 1, 2), (1, 1, 2)),
    ]
    for op in operators:
        problem = Problem(op, torch.zeros_like(op.rows, dtype=torch.float32))
        x = restored(problem, [0], outer=1)
        assert x.shape[1:] == op.image_shape and x.isfinite().all()
