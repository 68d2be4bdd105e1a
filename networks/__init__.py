"""Networks that denoise with the degradation in view, their configurations and weights files."""

from networks.analytic import GaussianPrior
from networks.denoiser import Denoiser
from networks.invfusion import LevelConfig, NetworkConfig
from networks.presets import PRESETS, make_config
from networks.reference import from_reference
from networks.weights import load_weights, read_summary, save_weights

__all__ = [
    "PRESETS",
    "Denoiser",
    "GaussianPrior",
    "LevelConfig",
    "NetworkConfig",
    "from_reference",
    "load_weights",
    "make_config",
    "read_summary",
    "save_weights",
]
