"""Solvers for denoisers trained on the problem, and the names they go by on the command line."""

from samplers.base import CountingDenoiser, Solver, karras_grid, make_solver, register, solver_names
from samplers.euler import Euler
from samplers.guidance import Guided
from samplers.heun import Heun
from samplers.mmse import MMSE
from samplers.tiles import Tiled, Tiling, tile_problems

__all__ = [
    "MMSE",
    "CountingDenoiser",
    "Euler",
    "Guided",
    "Heun",
    "Solver",
    "Tiled",
    "Tiling",
    "karras_grid",
    "make_solver",
    "register",
    "solver_names",
    "tile_problems",
]
