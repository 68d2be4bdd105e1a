"""Operators H of y = Hx + n, the random families they are drawn from, noise, and the problem."""

from degradation.base import Diagonalisable, LinearOperator, diagonalisable
from degradation.blur import (
    AveragePool,
    Bicubic,
    Blur,
    FixedKernel,
    GaussianBlur,
    MotionBlur,
    SRConv,
    UniformBlur,
)
from degradation.channels import ChannelProduct
from degradation.convolution import StridedConvolution
from degradation.families import FAMILIES, NoDegradation, RandomDegradation, get_family
from degradation.family import Family
from degradation.hadamard import BlockHadamard
from degradation.inpainting import (
    Box,
    CentreBox,
    FixedMask,
    HalfImage,
    MissingBox,
    MissingPatches,
    RandomPixels,
)
from degradation.mask import Mask, NullOperator
from degradation.matrix import DenseMatrix
from degradation.noise import (
    DrawnNoise,
    GaussianNoise,
    Noise,
    PoissonNoise,
    check_noise,
    make_noise,
)
from degradation.physics import FromPhysics, PhysicsFamily, to_deepinv
from degradation.problem import Problem
from degradation.projections import Colourisation, Hadamard, MatrixDegradation
from degradation.randomness import Draws, derive_seed
from degradation.valid import ValidConvolution, ValidRegion
