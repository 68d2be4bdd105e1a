"""A prior, noise and a problem on which several tests try the samplers."""

import pytest
from exact_gaussian import Gaussian
from helpers import gaussian
from torch import Tensor
from zero_shot_cases import SHAPE, make_prior, operators, posed

from degradation import Problem


@pytest.fixture
def case() -> tuple[Gaussian, Tensor, Problem]:
    return make_prior(), gaussian(2, *SHAPE, seed=7), posed(operators(2)["matrix"], 0.1)
