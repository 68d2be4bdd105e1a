"""The denoiser against recorded outputs of an independent implementation (skipped without them).

The same is checked by formulas that anyone has: the layers by hand and the preconditioning in
`test_networks.py`, attention as a masked softmax in `test_attention.py`, rotary frequencies and
logits in `test_positions.py`, the steps of Heun in `tests/samplers/test_samplers.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import recorded_network
from small_networks import close
from torch import Tensor

from degradation import (
    DenseMatrix,
    Draws,
    Mask,
    Problem,
)
from networks import (
    Denoiser,
)
from samplers import MMSE, Heun

# ---- recorded outputs of an independent implementation ------------------------------------------

GOLDEN_CASES = ["matrix", "patches", "box", "none", "joint_without_degradation", "patches_aug_cond"]


def golden_problem(case: dict[str, Any]) -> Problem:
    shape = tuple(case["x"].shape[1:])
    tensors = case["degradation"] or {}
    if "deg_matrix" in tensors:
        return Problem(DenseMatrix(tensors["deg_matrix"], shape), case["y"][:, 0])
    if "deg_mask" in tensors:
        return Problem(Mask(tensors["deg_mask"][:, 0], shape), case["y"][:, 0])
    return Problem.without_measurement(len(case["x"]), shape)


@torch.no_grad()
@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_golden_network(golden: Callable[[str], Any], name: str, backend: str) -> None:
    recorded = golden("net_joint")
    case = recorded["cases"][name]
    denoiser = recorded_network(recorded)
    problem, augment = golden_problem(case), case.get("aug_cond")
    if "H_pinv_y" in case:
        close(problem.pinv(), case["H_pinv_y"])
    inputs = torch.cat((case["x"], problem.pinv()), 1)
    raw = denoiser.net(inputs, case["c_noise"], problem, augment)
    close(raw, case["net_out"], 1e-4)
    close(denoiser(case["x"], case["sigma"], problem, augment), case["precond_out"], 1e-4)
    close(denoiser.log_variance(case["sigma"]), case["logvar"].flatten(), 1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_golden_intermediates(golden: Callable[[str], Any], backend: str) -> None:
    recorded = golden("net_joint")
    case = recorded["cases"]["matrix"]
    expected = golden("net_joint_intermediates")["intermediates"]["matrix"]
    denoiser = recorded_network(recorded)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, inputs, output: found.update({name: output})

    for name, module in denoiser.net.named_modules():
        module.register_forward_hook(keep(name))
    problem = golden_problem(case)
    denoiser.net(torch.cat((case["x"], problem.pinv()), 1), case["c_noise"], problem)
    assert len(expected) == 13
    for name, value in expected.items():
        close(found[name.replace(".attn.", ".")], value, 1e-4)


@torch.no_grad()
def test_golden_samples(golden: Callable[[str], Any]) -> None:
    recorded = golden("net_joint")
    run = golden("samplers")["edm_tiny_net"]["patches"]
    denoiser = recorded_network(recorded)
    problem = golden_problem(recorded["cases"][run["net_case"]])
    rng = Draws([0, 1])
    samples = Heun(num_steps=run["num_steps"])(denoiser, run["noise"], problem, rng)
    close(samples, run["out"], 1e-4)
    close(MMSE()(denoiser, run["noise"], problem, rng), run["mse_out"], 1e-4)


def test_golden_rotary_frequencies(golden: Callable[[str], Any]) -> None:
    """Loading takes recorded buffers; here they are compared with those that we would compute."""
    recorded = golden("net_joint")
    config = recorded_network(recorded).config
    ours = Denoiser(config).net
    names = [name for name in recorded["state_dict"] if name.endswith("pos_emb.freqs")]
    assert len(names) == 6
    for name in names:
        found = ours.get_buffer(name.removeprefix("unet.").replace("attn.self", "self"))
        close(found, recorded["state_dict"][name], 1e-6)
