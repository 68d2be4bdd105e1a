"""Samplers for denoisers trained on the problem, and the names they go by on the command line."""

from samplers.adaptive import Adaptive
from samplers.base import (
    CountingDenoiser,
    Sampler,
    check_operator,
    evaluations_of,
    make_sampler,
    register,
    sampler_names,
)
from samplers.deis import DEIS
from samplers.dpm import DPM
from samplers.euler import Euler
from samplers.guidance import Guided
from samplers.heun import Heun
from samplers.indi import InDI
from samplers.mmse import MMSE, one_step
from samplers.nppc import NPPC, Components
from samplers.tiles import Tiled, Tiling, tile_problems
