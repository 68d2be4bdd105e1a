"""Networks that denoise with the degradation in view, their configurations and weights files."""

from networks.analytic import GaussianMixture
from networks.aseqdip import ASeqDIP
from networks.conditioning import posterior, posterior_mean
from networks.denoiser import Denoiser
from networks.fitting import fit_gaussian, fit_mixture
from networks.invfusion import LevelConfig, NetworkConfig
from networks.presets import PRESETS, make_config
from networks.weights import Model, load_weights, read_summary, save_weights
