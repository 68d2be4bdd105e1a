"""Named network configurations: those of the paper (Table 5), and small ones for a CPU."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from networks.analytic import PriorConfig
from networks.invfusion import LevelConfig, NetworkConfig
from runtime.records import plain, record

CONDITIONINGS = ("invfusion", "blind", "unconditional")

# The paper's networks drop 5 % of the activations at every level and have heads of 64 channels.
_FFHQ64 = NetworkConfig(
    image_shape=(3, 64, 64),
    patch=2,
    levels=(
        LevelConfig(2, 384, kernel=7, dropout=0.05),
        LevelConfig(2, 768, kernel=7, dropout=0.05),
        LevelConfig(8, 1536, dropout=0.05),
    ),
)

PRESETS: dict[str, NetworkConfig] = {
    "FFHQ64": _FFHQ64,
    "ImageNet64": replace(_FFHQ64, num_classes=1000),
    "FFHQ256": NetworkConfig(
        image_shape=(3, 256, 256),
        patch=4,
        levels=(
            LevelConfig(2, 192, kernel=5, dropout=0.05),
            LevelConfig(2, 384, kernel=7, dropout=0.05),
            LevelConfig(4, 768, dropout=0.05),
            # Here a token stands for 32×32 pixels of 3 colours, twice its width.
            LevelConfig(2, 1536, dropout=0.05, joint=False),
        ),
    ),
    "small32": NetworkConfig(
        image_shape=(3, 32, 32),
        patch=4,
        levels=(LevelConfig(4, 192, d_head=32),),
        mapping_width=128,
    ),
    "small64": NetworkConfig(
        image_shape=(3, 64, 64),
        patch=4,
        levels=(LevelConfig(1, 96, d_head=32), LevelConfig(4, 192, d_head=32)),
        mapping_width=128,
    ),
    "tiny": NetworkConfig(
        image_shape=(3, 16, 16),
        patch=2,
        levels=(LevelConfig(1, 48, kernel=5, d_head=16), LevelConfig(1, 96, d_head=32)),
        mapping_width=32,
    ),
}

_FIXED = ("image_shape", "num_classes", "in_mult", "out_mult", "noise_conditioning", "objective")
"""Fields that follow from the data and from what the network is trained for."""


def make_config(
    preset: str,
    conditioning: str = "invfusion",
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    network: Mapping[str, Any] | None = None,
) -> NetworkConfig:
    """The configuration of a named network.

    conditioning: "invfusion" sees y and H, "blind" sees H†y alone (Palette), "unconditional" sees
    neither. image_shape and num_classes override those of the preset. network: other fields of
    `NetworkConfig` to override, from a configuration file; `levels` are mappings of the fields of
    `LevelConfig`. Raises ValueError for unknown names and fields, and unfit image shapes.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown network '{preset}'; known are {', '.join(PRESETS)}")
    if conditioning not in CONDITIONINGS:
        names = ", ".join(CONDITIONINGS)
        raise ValueError(f"unknown conditioning '{conditioning}'; known are {names}")
    given = dict(network or {})
    known = [f.name for f in fields(NetworkConfig) if f.name not in _FIXED]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"network: unknown field '{unknown[0]}'; known are {', '.join(known)}")
    config = record(NetworkConfig, plain(asdict(PRESETS[preset])) | given, "network")
    levels = config.levels
    if conditioning != "invfusion":
        levels = tuple(replace(level, joint=False) for level in levels)
    channels, h, w = image_shape or config.image_shape
    return replace(
        config,
        image_shape=(channels, h, w),
        num_classes=config.num_classes if num_classes is None else num_classes,
        levels=levels,
        in_mult=1 if conditioning == "unconditional" else 2,
    )


def conditioning_of(config: NetworkConfig | PriorConfig) -> str:
    """What a network of this configuration knows of the problem: one of `CONDITIONINGS`."""
    if isinstance(config, PriorConfig):
        return "unconditional"
    if any(level.joint for level in config.levels):
        return "invfusion"
    return "blind" if config.in_mult == 2 else "unconditional"
