"""Presets, and the sizes that a network may have."""

import dataclasses
from typing import Any

import pytest
import torch
from small_networks import SHAPE

from networks import (
    PRESETS,
    Denoiser,
    LevelConfig,
    NetworkConfig,
    make_config,
)
from networks.presets import CONDITIONINGS, conditioning_of

# ---- presets ------------------------------------------------------------------------------------


def count(config: NetworkConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Denoiser(config).parameters())


@pytest.mark.parametrize(
    ("preset", "conditioning", "millions"),
    [
        ("FFHQ64", "unconditional", 305.47),
        ("FFHQ64", "blind", 305.48),
        ("FFHQ64", "invfusion", 375.28),
        ("FFHQ256", "unconditional", 151.88),
        ("FFHQ256", "blind", 151.89),
        ("FFHQ256", "invfusion", 170.42),
    ],
)
def test_presets_have_the_published_sizes(preset: str, conditioning: str, millions: float) -> None:
    assert round(count(make_config(preset, conditioning)) / 1e6, 2) == millions


def test_classes_add_their_embeddings_and_nothing_else() -> None:
    extra = count(make_config("ImageNet64")) - count(make_config("FFHQ64"))
    assert extra == 1001 * 256  # 0.26 million


@pytest.mark.parametrize(
    ("preset", "patch", "kernels", "joint"),
    [
        ("FFHQ64", 2, (7, 7, None), (True, True, True)),
        ("ImageNet64", 2, (7, 7, None), (True, True, True)),
        ("FFHQ256", 4, (5, 7, None, None), (True, True, True, False)),
    ],
)
def test_presets_have_what_counting_does_not_show(
    preset: str, patch: int, kernels: tuple, joint: tuple
) -> None:
    config = make_config(preset)
    assert config.patch == patch
    assert tuple(level.kernel for level in config.levels) == kernels
    assert tuple(level.joint for level in config.levels) == joint
    assert {level.dropout for level in config.levels} == {0.05}
    assert {level.d_head for level in config.levels} == {64}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_conditioning_is_told_by_the_configuration(preset: str, conditioning: str) -> None:
    config = make_config(preset, conditioning)
    assert conditioning_of(config) == conditioning
    assert any(level.joint for level in config.levels) == (conditioning == "invfusion")
    assert config.in_mult == (1 if conditioning == "unconditional" else 2)


def test_make_config_overrides() -> None:
    config = make_config("small32", image_shape=(3, 48, 32), num_classes=5)
    assert config.image_shape == (3, 48, 32)
    assert config.num_classes == 5
    assert make_config("ImageNet64", num_classes=0) == make_config("FFHQ64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("FFHQ",),
            "unknown network 'FFHQ'; known are FFHQ64, ImageNet64, FFHQ256, small32, small64, tiny",
        ),
        (("tiny", "palette"), "unknown conditioning 'palette'; known are invfusion, blind, uncond"),
        (("tiny", "blind", (3, 18, 16)), "image sides 18×16 must be multiples of 4"),
        (("tiny", "invfusion", (5, 16, 16)), "level 0: width 48 is no multiple of 20 values"),
    ],
)
def test_make_config_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(*arguments)


@pytest.mark.parametrize("joint", [True, False])
def test_only_joint_levels_need_a_stack_of_images(joint: bool) -> None:
    levels = (LevelConfig(1, 50, None, d_head=10, joint=joint),)
    if joint:
        with pytest.raises(ValueError, match="width 50 is no multiple of 12 values of a patch"):
            NetworkConfig(SHAPE, 2, levels)
    else:
        assert NetworkConfig(SHAPE, 2, levels).levels == levels


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch": 0}, "patch 0 must be a whole number of at least 1"),
        ({"levels": ()}, "a network has 1 to 16 levels, not 0"),
        ({"in_mult": 3}, "in_mult 3 must be 1 or 2"),
        ({"sigma_data": 0.0}, "sigma_data 0.0 must be a number from 1e-4 to 1e4"),
        ({"mapping_width": 33}, "mapping_width 33 must be even"),
    ],
)
def test_sizes_that_no_network_has(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        dataclasses.replace(make_config("tiny"), **change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"d_head": 20}, "d_head 20 must divide the width 48"),
        ({"dropout": 1.0}, "dropout 1.0 must be at least 0 and less than 1"),
    ],
)
def test_sizes_that_no_level_has(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        LevelConfig(**({"depth": 1, "width": 48, "kernel": 5, "d_head": 16} | change))
