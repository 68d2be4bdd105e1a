"""Networks of which an independent implementation recorded weights and outputs."""

from typing import Any

from networks import Denoiser, LevelConfig, NetworkConfig
from networks.reference import from_reference


def recorded_network(recorded: dict[str, Any]) -> Denoiser:
    """The network of a record's state dict and configuration, which names things its own way."""
    c = recorded["config"]
    levels = tuple(
        LevelConfig(depth, width, attention.get("kernel_size"), attention["d_head"], d_ff, joint)
        for depth, width, attention, d_ff, joint in zip(
            c["depths"], c["widths"], c["self_attns"], c["d_ffs"], c["joint_levels"], strict=True
        )
    )
    side = c["img_resolution"]
    config = NetworkConfig(
        image_shape=(c["img_channels"], side, side),
        patch=c["patch_size"][0],
        levels=levels,
        in_mult=c["in_mult"],
        num_classes=c.get("label_dim") or 0,
        mapping_width=c["mapping_width"],
        mapping_depth=c["mapping_depth"],
        mapping_d_ff=c["mapping_d_ff"],
        logvar_channels=c.get("logvar_channels", 128),
    )
    return from_reference(recorded["state_dict"], config)
