"""The denoiser: its preconditioning, what it is told, and what must hold for any weights."""

import dataclasses
import itertools
import math

import pytest
import torch
from small_networks import FAMILIES, SHAPE, close, make_problem, noisy, randomised, tiny
from torch import Tensor

from degradation import (
    DenseMatrix,
    Mask,
    Problem,
)
from networks import (
    Denoiser,
    make_config,
)
from networks.features import feature_map
from networks.invfusion import FeatureDegradation
from networks.presets import CONDITIONINGS

# ---- the Feature Degradation Layer --------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("noise_level", [0.0, 0.2])
@pytest.mark.parametrize("family", ["MissingPatches", "MotionBlur", "MatrixDegradation"])
def test_feature_degradation_by_hand(family: str, noise_level: float) -> None:
    """One pseudo-image and one token at a time, in float64, with the exact GELU (Eq. 5)."""
    layer = FeatureDegradation(width=36, patch=2, channels=3)  # a stack of 3 images
    weight, bias = (p.double() for p in layer.parameters())
    problem = make_problem(family, noise_level=noise_level)
    operator, x = problem.degradation, torch.randn(2, 8, 8, 36)
    images = torch.zeros(2, 3, *SHAPE)
    sites = list(itertools.product(range(8), range(8), range(2), range(2), range(3), range(3)))
    for i, j, p, q, k, c in sites:
        images[:, k, c, 2 * i + p, 2 * j + q] = x[:, i, j, ((p * 2 + q) * 3 + k) * 3 + c]
    stack = [problem.y.double(), *(operator.H(images[:, k]).double() for k in range(3))]
    expected = torch.zeros_like(x)
    for k in range(3):
        mixed = bias[k] + sum(w * part for w, part in zip(weight[k], stack, strict=True))
        gelu = mixed * (1 + torch.erf(mixed / math.sqrt(2))) / 2
        images[:, k] = operator.H_pinv(gelu.float(), noise_level)
    for i, j, p, q, k, c in sites:
        expected[:, i, j, ((p * 2 + q) * 3 + k) * 3 + c] = images[:, k, c, 2 * i + p, 2 * j + q]
    features = feature_map(problem.degradation, problem.y, problem.levels, 2)
    close(layer(x, features), expected, 2e-5)
    assert expected.abs().max() > 0.1


# ---- preconditioning ----------------------------------------------------------------------------


@torch.no_grad()
def test_a_new_network_is_the_skip_connection() -> None:
    """The last layer starts at zero, so D = σ_d²/(σ² + σ_d²)·x (EDM, Table 1)."""
    x, sigma = noisy()
    estimate = Denoiser(make_config("tiny"))(x, sigma, make_problem("Box"))
    close(estimate, x * (0.25 / (sigma**2 + 0.25))[:, None, None, None])


@torch.no_grad()
def test_preconditioning_formula() -> None:
    """D = c_skip·x + c_out·F([c_in·x, H†y], ln(σ)/4), H† regularised by the noise level."""
    denoiser, problem = tiny(), make_problem("MotionBlur", noise_level=0.1)
    x, sigma = noisy()
    s = sigma[:, None, None, None]
    pinv = problem.degradation.H_pinv(problem.y, 0.1)
    assert (pinv - problem.degradation.H_pinv(problem.y)).abs().max() > 0.1
    inputs = torch.cat((x / (s**2 + 0.25).sqrt(), pinv), 1)
    raw = denoiser.net(inputs, sigma.log() / 4, problem)
    assert raw.abs().max() > 0.1
    expected = 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * raw
    close(denoiser(x, sigma, problem), expected)


@torch.no_grad()
def test_without_noise_the_image_is_returned() -> None:
    x = noisy()[0]
    close(tiny()(x, 1e-6, make_problem("Box")), x)


@torch.no_grad()
def test_sigma_may_be_a_number() -> None:
    denoiser, problem, x = tiny(), make_problem("Box"), noisy()[0]
    expected = denoiser(x, torch.full((2,), 0.3), problem)
    for sigma in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)):
        close(denoiser(x, sigma, problem), expected, 1e-6)


@torch.no_grad()
def test_components_are_the_raw_channels_beyond_the_mean() -> None:
    denoiser, problem = tiny(out_mult=3), make_problem("Box")
    x, sigma = noisy()
    estimate, components = denoiser.components(x, sigma, problem)
    inputs = torch.cat((x / (sigma**2 + 0.25).sqrt()[:, None, None, None], problem.pinv()), 1)
    raw = denoiser.net(inputs, sigma.log() / 4, problem)
    assert components.shape == (2, 2, *SHAPE)
    close(components[:, 1], raw[:, 6:])
    assert torch.equal(estimate, denoiser(x, sigma, problem))


def test_log_variance_starts_at_zero_and_follows_sigma() -> None:
    sigma = torch.tensor([0.01, 1.0, 50.0])
    assert torch.equal(Denoiser(make_config("tiny")).log_variance(sigma), torch.zeros(3))
    values = tiny().log_variance(sigma)
    assert values.shape == (3,)
    assert values.unique().numel() == 3


# ---- conditioning -------------------------------------------------------------------------------


@torch.no_grad()
def test_an_unconditional_network_ignores_the_measurement() -> None:
    x, sigma = noisy()
    problems = [make_problem(family) for family in ("Box", "MatrixDegradation", "NoDegradation")]
    denoiser = tiny("unconditional")
    assert denoiser.net.patch_in.proj.in_features == 3 * 2 * 2
    outputs = [denoiser(x, sigma, problem) for problem in problems]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def same_pinv_other_operator() -> tuple[Problem, Problem]:
    """Two masks of an image that is black where they differ: H†y is equal, H is not."""
    mask = torch.ones(2, 1, 16, 16)
    mask[..., :7] = 0
    wider = mask.clone()
    wider[..., 4:7] = 1
    y = torch.rand(2, *SHAPE).mul(mask).flatten(1)
    return Problem(Mask(mask), y), Problem(Mask(wider), y)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["blind", "invfusion"])
def test_only_the_invfusion_network_sees_the_operator(conditioning: str) -> None:
    x, sigma = noisy()
    one, other = same_pinv_other_operator()
    assert torch.equal(one.pinv(), other.pinv())
    denoiser = tiny(conditioning)
    a, b = denoiser(x, sigma, one), denoiser(x, sigma, other)
    if conditioning == "blind":
        assert torch.equal(a, b)
        assert (a - denoiser(x, sigma, make_problem("Box"))).abs().max() > 1e-3  # sees H†y
    else:
        assert (a - b).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("noise_level", [0.0, 0.3])
def test_the_operator_counts_and_not_how_it_is_written(noise_level: float) -> None:
    """A mask as an operator of its own, and as a matrix of the rows it keeps."""
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, 3:8, 2:11] = 1
    mask[1, :, 10:15, 5:14] = 1
    operator = Mask(mask)
    visible = operator.rows
    matrix = torch.eye(768).expand(2, 768, 768)[visible].unflatten(0, (2, -1))
    y = operator.H(torch.rand(2, *SHAPE) * 2 - 1)
    one = Problem(operator, y, noise_level)
    other = Problem(DenseMatrix(matrix, SHAPE), y[visible].unflatten(0, (2, -1)), noise_level)
    denoiser, (x, sigma) = tiny(), noisy()
    close(denoiser(x, sigma, one), denoiser(x, sigma, other))


@torch.no_grad()
def test_the_noise_level_reaches_the_feature_layers() -> None:
    """With the same input images, so that the difference is that of the layers themselves."""
    denoiser, problem = tiny(), make_problem("MatrixDegradation")
    noisier = Problem(problem.degradation, problem.y, 0.5)
    x, c_noise = torch.randn(2, 6, 16, 16), torch.zeros(2)
    a, b = denoiser.net(x, c_noise, problem), denoiser.net(x, c_noise, noisier)
    assert (a - b).abs().max() > 1e-3


@torch.no_grad()
def test_the_null_class_is_minus_one() -> None:
    denoiser, problem = tiny(num_classes=4), make_problem("Box")
    x, sigma = noisy()

    def output(labels: list[int] | None) -> Tensor:
        classes = None if labels is None else torch.tensor(labels)
        return denoiser(x, sigma, problem.with_classes(classes))

    null, mixed = output([-1, -1]), output([-1, 2])
    assert torch.equal(null, output(None))
    assert torch.equal(null[0], mixed[0])
    assert (null[1] - mixed[1]).abs().max() > 1e-4
    outputs = torch.stack([output([label, label])[0] for label in (-1, 0, 1, 2, 3)])
    assert torch.pdist(outputs.flatten(1)).min() > 1e-3  # five different classes
    embedding = denoiser.net.class_emb.weight
    embedding[4] = embedding[1]
    close(output(None), output([1, 1]), 1e-6)  # the last row is "no class"


@torch.no_grad()
def test_augment_labels_default_to_none() -> None:
    denoiser, problem = tiny(), make_problem("Box")
    x, sigma = noisy()
    plain = denoiser(x, sigma, problem)
    assert torch.equal(plain, denoiser(x, sigma, problem, torch.zeros(2, 9)))
    labels = torch.zeros(2, 9)
    labels[1, 8] = 1
    flipped = denoiser(x, sigma, problem, labels)
    close(flipped[0], plain[0], 1e-6)
    assert (flipped[1] - plain[1]).abs().max() > 1e-4


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family: str, conditioning: str) -> None:
    denoiser = tiny(conditioning, num_classes=3, out_mult=2)
    problem = make_problem(family).with_classes(torch.tensor([1, -1]))
    x, sigma = noisy()
    estimate, components = denoiser.components(x, sigma, problem)
    loss = estimate.square().sum() + components.sum() + denoiser.log_variance(sigma).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in denoiser.named_parameters()}
    absent = [name for name, gradient in gradients.items() if gradient is None]
    assert not absent
    zero = [name for name, gradient in gradients.items() if not gradient.any()]
    if family == "NoDegradation":  # the joint keys still draw attention, with values of zero
        assert all("feature_degradation" in n or "jnorm" in n or "jv_proj" in n for n in zero)
    else:
        assert not zero
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_gradient_in_the_image() -> None:
    """d⟨v, D(x)⟩/dx against a central difference."""
    denoiser, problem = tiny(), make_problem("MatrixDegradation")
    x, sigma = noisy()
    x.requires_grad_()
    v, direction = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    (gradient,) = torch.autograd.grad((v * denoiser(x, sigma, problem)).sum(), x)
    with torch.no_grad():
        h = 1e-2
        ahead, behind = (denoiser(x + s * direction, sigma, problem) for s in (h, -h))
        numeric = (v * (ahead - behind)).sum() / (2 * h)
    close((gradient * direction).sum(), numeric, 1e-2)


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    levels = tuple(dataclasses.replace(level, dropout=0.5) for level in make_config("tiny").levels)
    with_dropout, without = tiny(levels=levels), tiny()
    problem, (x, sigma) = make_problem("Box"), noisy()
    assert torch.equal(with_dropout(x, sigma, problem), without(x, sigma, problem))
    a, b = (with_dropout.train()(x, sigma, problem) for _ in range(2))
    assert (a - b).abs().max() > 1e-3


# ---- batches, precision, geometry ---------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_batch_do_not_meet(family: str) -> None:
    denoiser, problem = tiny(num_classes=2), make_problem(family, batch=3, noise_level=0.05)
    problem = problem.with_classes(torch.tensor([0, -1, 1]))
    x, sigma = noisy(3)
    together = denoiser(x, sigma, problem)
    for i in range(3):
        alone = denoiser(x[i : i + 1], sigma[i : i + 1], problem[i : i + 1])
        close(together[i : i + 1], alone)


@torch.no_grad()
@pytest.mark.parametrize("family", ["MissingPatches", "MotionBlur", "MatrixDegradation"])
def test_bfloat16_autocast_stays_close(family: str) -> None:
    denoiser, problem = tiny(), make_problem(family)
    x, sigma = noisy()
    exact = denoiser(x, sigma, problem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = denoiser(x, sigma, problem)
    assert short.dtype == exact.dtype == torch.float32
    error = (short - exact).square().mean().sqrt()
    assert 0 < error < 5e-3  # of images with a spread of about 0.5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["MissingPatches", "MotionBlur", "MatrixDegradation"])
def test_weights_cast_for_good_compute_what_autocast_does(family: str, dtype: torch.dtype) -> None:
    denoiser, problem = tiny(num_classes=3), make_problem(family)
    x, sigma = noisy()
    problem = dataclasses.replace(problem, class_labels=torch.tensor([0, 2]))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = denoiser(x, sigma, problem)
        denoiser.cast_linear(dtype)
        assert torch.equal(denoiser(x, sigma, problem), expected)
    assert denoiser.net.merges[0].proj.weight.dtype == dtype


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8])
def test_output_is_float32_for_any_input(dtype: torch.dtype) -> None:
    x = (torch.rand(2, *SHAPE) * 3).to(dtype)
    denoiser, problem = tiny(), make_problem("Box")
    estimate = denoiser(x, 0.5, problem)
    assert estimate.dtype == torch.float32
    close(estimate, denoiser(x.float(), 0.5, problem), 1e-6)


@torch.no_grad()
def test_the_network_takes_images_that_are_not_square() -> None:
    """A layer that swapped the sides would break the shape, or move what changes."""
    config = make_config("tiny", image_shape=(3, 16, 24))
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 5:] = 1
    operator = Mask(mask)
    y = operator.H(torch.rand(1, 3, 16, 24))
    levels = tuple(dataclasses.replace(level, kernel=3) for level in config.levels)
    denoiser = randomised(dataclasses.replace(config, levels=levels))
    x = torch.randn(1, 3, 16, 24)
    estimate = denoiser(x, 0.5, Problem(operator, y))
    assert estimate.shape == (1, 3, 16, 24)
    x[..., :2, -2:] += 1  # the corner at the top right, of which the bottom left sees nothing
    change = (denoiser(x, 0.5, Problem(operator, y)) - estimate).abs()
    assert change[..., :2, -2:].max() > 1e-3
    close(change[..., -4:, :4], torch.zeros(1, 3, 4, 4), 1e-6)


def test_x_the_problem_and_the_network_must_be_of_one_size() -> None:
    denoiser, problem = Denoiser(make_config("tiny")), make_problem("MatrixDegradation")
    with pytest.raises(ValueError, match=r"^x has 1 images, but the problem \d$"):
        denoiser(torch.randn(1, 3, 16, 16), 1.0, problem)
    with pytest.raises(ValueError, match=r"^x is of images \(3, 32, 32\), but the network of "):
        denoiser(torch.randn(len(problem), 3, 32, 32), 1.0, problem)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_may_be_kept_in_another_precision(dtype: torch.dtype) -> None:
    denoiser = randomised(make_config("tiny"))
    problem = make_problem("MatrixDegradation")
    x = torch.randn(len(problem), 3, 16, 16)
    with torch.no_grad():
        expected = denoiser(x, 1.0, problem)
        found = denoiser.to(dtype)(x, 1.0, problem)
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    assert found.dtype == torch.float32
