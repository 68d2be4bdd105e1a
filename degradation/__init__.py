"""Operators H of y = Hx + n, the random families they are drawn from, noise, and the problem."""

from degradation.base import Degradation
from degradation.convolution import StridedConvolution
from degradation.families import (
    FAMILIES,
    Box,
    Family,
    MatrixDegradation,
    MissingBox,
    MissingPatches,
    MotionBlur,
    NoDegradation,
    RandomDegradation,
    SRConv,
    get_family,
)
from degradation.mask import Mask, NullOperator
from degradation.matrix import DenseMatrix
from degradation.noise import GaussianNoise
from degradation.problem import Problem
from degradation.randomness import Draws, derive_seed
from degradation.valid import ValidConvolution, ValidRegion

__all__ = [
    "FAMILIES",
    "Box",
    "Degradation",
    "DenseMatrix",
    "Draws",
    "Family",
    "GaussianNoise",
    "Mask",
    "MatrixDegradation",
    "MissingBox",
    "MissingPatches",
    "MotionBlur",
    "NoDegradation",
    "NullOperator",
    "Problem",
    "RandomDegradation",
    "SRConv",
    "StridedConvolution",
    "ValidConvolution",
    "ValidRegion",
    "derive_seed",
    "get_family",
]
