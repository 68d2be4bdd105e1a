"""Weights of other implementations: every layout and variant, and what is refused."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from degradation import Mask, Problem
from networks import Denoiser, LevelConfig, NetworkConfig, from_reference

LEVELS = (
    LevelConfig(depth=2, width=48, kernel=5, d_head=16, d_ff=96),
    LevelConfig(depth=1, width=96, kernel=3, d_head=32, d_ff=144),
    LevelConfig(depth=1, width=192, kernel=None, d_head=64, d_ff=192),
)
BASE = NetworkConfig(
    (3, 16, 24), 2, LEVELS, mapping_width=32, mapping_depth=3, mapping_d_ff=64, sigma_data=0.4
)


def without_joint(*indices: int) -> tuple[LevelConfig, ...]:
    return tuple(
        dataclasses.replace(level, joint=level.joint and i not in indices)
        for i, level in enumerate(LEVELS)
    )


VARIANTS = {
    "invfusion": BASE,
    "deepest level plain": dataclasses.replace(BASE, levels=without_joint(2)),
    "blind": dataclasses.replace(BASE, levels=without_joint(0, 1, 2)),
    "unconditional": dataclasses.replace(BASE, levels=without_joint(0, 1, 2), in_mult=1),
    "joint without H†y": dataclasses.replace(BASE, in_mult=1),
    "classes": dataclasses.replace(BASE, num_classes=6),
    "components": dataclasses.replace(BASE, out_mult=4),
    "one level": dataclasses.replace(BASE, levels=LEVELS[:1]),
    "grey": dataclasses.replace(BASE, image_shape=(1, 16, 24), in_mult=1),
    "patch of one": dataclasses.replace(BASE, image_shape=(3, 8, 4), patch=1),
}


def random_denoiser(config: NetworkConfig) -> Denoiser:
    """A network without zeros whose values float16 holds exactly."""
    denoiser = Denoiser(config)
    with torch.no_grad():
        for tensor in denoiser.state_dict().values():
            tensor.copy_((tensor + 0.05 * torch.randn_like(tensor)).half())
    return denoiser.eval()


def authors_layout(denoiser: Denoiser) -> dict[str, Tensor]:
    """`unet.` before the network, every layer wrapped, a log-variance head."""
    renamed = {}
    for name, tensor in denoiser.state_dict().items():
        name = re.sub(r"^net\.", "unet.", name)
        name = re.sub(r"(level[\d.s]*)\.(self_attn|ff)\.", r"\1.attn.\2.", name)
        name = re.sub(r"^logvar\.linear", "logvar_linear", name)
        renamed[re.sub(r"^logvar\.", "logvar_fourier.", name)] = tensor.clone()
    return renamed


def plain_layout(denoiser: Denoiser) -> dict[str, Tensor]:
    """The names of k-diffusion: no prefix, no wrapped layers, no head."""
    tensors = denoiser.state_dict().items()
    return {name[4:]: tensor.clone() for name, tensor in tensors if name.startswith("net.")}


LAYOUTS: dict[str, Callable[[Denoiser], dict[str, Tensor]]] = {
    "authors": authors_layout,
    "plain": plain_layout,
    "parallel": lambda d: {f"module.{name}": t for name, t in authors_layout(d).items()},
    "compiled": lambda d: {f"_orig_mod.{name}": t for name, t in plain_layout(d).items()},
    "compiled inside": lambda d: {
        name.replace("unet.", "unet._orig_mod."): t for name, t in authors_layout(d).items()
    },
    "both": lambda d: {f"module._orig_mod.{name}": t for name, t in authors_layout(d).items()},
    "inner": lambda d: {f"inner_model.{name}": t for name, t in plain_layout(d).items()},
}


def attentions(config: NetworkConfig) -> list[dict[str, Any]]:
    return [
        {"type": "global", "d_head": level.d_head}
        if level.kernel is None
        else {"type": "neighborhood", "d_head": level.d_head, "kernel_size": level.kernel}
        for level in config.levels
    ]


def full_config(config: NetworkConfig) -> dict[str, Any]:
    """Every key of the configuration of another implementation."""
    levels = config.levels
    return {
        "img_channels": config.image_shape[0],
        "img_resolution": list(config.image_shape[1:]),
        "in_mult": config.in_mult,
        "out_mult": config.out_mult,
        "label_dim": config.num_classes,
        "patch_size": [config.patch, config.patch],
        "depths": [level.depth for level in levels],
        "widths": [level.width for level in levels],
        "joint": any(level.joint for level in levels),
        "joint_levels": [level.joint for level in levels],
        "self_attns": attentions(config),
        "d_ffs": [level.d_ff for level in levels],
        "mapping_width": config.mapping_width,
        "mapping_depth": config.mapping_depth,
        "mapping_d_ff": config.mapping_d_ff,
        "sigma_data": config.sigma_data,
    }


def short_config(config: NetworkConfig) -> dict[str, Any]:
    """Only what no tensor tells."""
    full = full_config(config)
    keys = ("img_channels", "img_resolution", "self_attns", "sigma_data")
    return {key: full[key] for key in keys}


def outputs(denoiser: Denoiser) -> list[Tensor]:
    """Everything a network says on one problem, from a fixed generator."""
    shape, generator = denoiser.config.image_shape, torch.Generator().manual_seed(2)
    operator = Mask((torch.rand(2, 1, *shape[1:], generator=generator) < 0.5).float(), shape)
    y = operator.H(torch.randn(2, *shape, generator=generator))
    problem = Problem(operator, y, class_labels=torch.tensor([-1, 3]))
    x, labels = (torch.randn(2, *s, generator=generator) for s in (shape, (9,)))
    sigma = torch.tensor([0.4, 3.0])
    with torch.no_grad():
        return [*denoiser.components(x, sigma, problem, labels), denoiser.log_variance(sigma)]


# ---- what is loaded -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["authors", "plain"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_load_from_the_shortest_configuration(variant: str, layout: str) -> None:
    ours = random_denoiser(VARIANTS[variant])
    loaded = from_reference(LAYOUTS[layout](ours), short_config(ours.config))
    assert loaded.config == ours.config
    assert not loaded.training
    expected = outputs(ours)
    if layout == "plain":  # it has no head: u(σ) is zero
        assert expected[2].all()
        expected[2] = torch.zeros(2)
    for found, value in zip(outputs(loaded), expected, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_load_from_the_full_configuration(layout: str) -> None:
    ours = random_denoiser(VARIANTS["classes"])
    loaded = from_reference(LAYOUTS[layout](ours), full_config(ours.config))
    assert loaded.config == ours.config
    assert torch.equal(outputs(loaded)[0], outputs(ours)[0])


def test_half_precision_becomes_float32() -> None:
    ours = random_denoiser(BASE)
    state = {name: tensor.half() for name, tensor in authors_layout(ours).items()}
    loaded = from_reference(state, short_config(BASE))
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, ours.state_dict()[name]), name
    assert next(iter(state.values())).dtype == torch.float16  # the caller's are left alone


def test_the_loaded_network_owns_its_weights() -> None:
    ours = random_denoiser(BASE)
    state = authors_layout(ours)
    loaded = from_reference(state, short_config(BASE))
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(outputs(loaded)[0], outputs(ours)[0])


def test_rotary_frequencies_may_be_absent() -> None:
    ours = Denoiser(BASE).eval()
    state = {name: t for name, t in plain_layout(ours).items() if "pos_emb" not in name}
    loaded = from_reference(state, short_config(BASE))
    assert all(map(torch.equal, loaded.net.buffers(), ours.net.buffers()))


def test_rotary_frequencies_that_are_there_are_taken() -> None:
    ours = random_denoiser(BASE)
    name = "mid_level.0.self_attn.pos_emb.freqs"
    loaded = from_reference(plain_layout(ours), short_config(BASE))
    assert torch.equal(loaded.net.get_buffer(name), ours.net.get_buffer(name))
    assert not torch.equal(loaded.net.get_buffer(name), Denoiser(BASE).net.get_buffer(name))


def test_values_may_be_tuples_numbers_and_lists() -> None:
    ours = random_denoiser(dataclasses.replace(BASE, image_shape=(3, 16, 16)))
    config = full_config(ours.config)
    config |= {"patch_size": 2, "img_resolution": 16, "widths": (48, 96, 192)}
    config |= {"self_attns": tuple(config["self_attns"]), "joint_levels": (True, True, True)}
    assert from_reference(authors_layout(ours), config).config == ours.config
    config |= {"patch_size": (2, 2), "img_resolution": (16, 16)}
    assert from_reference(authors_layout(ours), config).config == ours.config


def test_colour_and_sigma_have_defaults() -> None:
    config = dataclasses.replace(BASE, sigma_data=0.5)
    short = short_config(config)
    del short["img_channels"], short["sigma_data"]
    assert from_reference(plain_layout(Denoiser(config)), short).config == config


def test_golden_configuration(golden: Callable[[str], Any]) -> None:
    """Every key but two may go; what is loaded stays the same."""
    recorded = golden("net_joint")
    state, config = recorded["state_dict"], recorded["config"]
    loaded = from_reference(state, config)
    assert [level.kernel for level in loaded.config.levels] == [7, 5, None]
    for name, tensor in state.items():
        if name.startswith("unet.mid_level"):
            ours = loaded.state_dict()[name.replace("unet.", "net.").replace(".attn.", ".")]
            assert torch.equal(ours, tensor.float())
    for key in config:
        shorter = {k: value for k, value in config.items() if k != key}
        if key in ("self_attns", "img_resolution"):
            message = f"config must have '{key}', which the tensors do not tell"
            with pytest.raises(ValueError, match=message):
                from_reference(state, shorter)
        else:
            assert from_reference(state, shorter).config == loaded.config


# ---- what is refused ----------------------------------------------------------------------------


def refusal(state: dict[str, Any], config: dict[str, Any]) -> str:
    """The sentence of the ValueError."""
    with pytest.raises(ValueError) as caught:
        from_reference(state, config)
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    return message


@pytest.fixture(scope="module")
def classes() -> Denoiser:
    torch.manual_seed(0)
    return random_denoiser(VARIANTS["classes"])


@pytest.mark.parametrize(
    ("key", "given", "found"),
    [
        ("in_mult", 1, 2),
        ("out_mult", 3, 1),
        ("label_dim", 5, 6),
        ("patch_size", 4, (2, 2)),
        ("patch_size", [2, 4], (2, 2)),
        ("depths", [2, 1, 2], (2, 1, 1)),
        ("depths", [2, 1], (2, 1, 1)),
        ("widths", [48, 96, 96], (48, 96, 192)),
        ("joint", False, True),
        ("joint_levels", [True, True, False], (True, True, True)),
        ("d_ffs", [144, 288, 576], (96, 144, 192)),
        ("mapping_width", 256, 32),
        ("mapping_depth", 2, 3),
        ("mapping_d_ff", 96, 64),
        ("logvar_channels", 64, 128),
    ],
)
def test_contradictions(classes: Denoiser, key: str, given: Any, found: Any) -> None:
    config = {**full_config(classes.config), key: given}
    expected = f"config has {key} {given}, but the tensors have {found}"
    assert refusal(authors_layout(classes), config) == expected


def changed_attention(index: int, **changes: Any) -> dict[str, Any]:
    config = short_config(VARIANTS["classes"])
    specs = attentions(VARIANTS["classes"])
    specs[index] |= changes
    return {**config, "self_attns": specs}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            changed_attention(1, type="shifted-window", window_size=7),
            "config has self_attns[1] type 'shifted-window'; only 'neighborhood' and 'global' "
            "attention can be loaded",
        ),
        (
            changed_attention(2, type="none"),
            "config has self_attns[2] type 'none'; only 'neighborhood' and 'global' attention can "
            "be loaded",
        ),
        (
            changed_attention(0, d_head=64),
            "config has self_attns[0] d_head 64, but the tensors have 16",
        ),
        (
            changed_attention(0, kernel_size=None),
            "config has self_attns[0] kernel_size None, not a number",
        ),
        (
            {**changed_attention(0), "self_attns": attentions(BASE)[1:]},
            "config has self_attns for 2 levels, but the tensors have 3",
        ),
        (
            {**changed_attention(0), "img_resolution": [16, 24, 3]},
            "config has img_resolution [16, 24, 3], which is not one or two sides",
        ),
        (
            {**changed_attention(0), "img_channels": 5},
            "'patch_in.proj.weight' takes 24 values, which are no square patch of one or two "
            "images with 5 channels",
        ),
    ],
)
def test_what_the_network_has_not(classes: Denoiser, config: dict[str, Any], sentence: str) -> None:
    assert refusal(authors_layout(classes), config) == sentence


def test_a_resolution_that_does_not_fit(classes: Denoiser) -> None:
    config = {**short_config(classes.config), "img_resolution": 20}
    assert "image sides 20×20 must be multiples of 8" in refusal(plain_layout(classes), config)


def test_a_misspelt_key(classes: Denoiser) -> None:
    config = {**short_config(classes.config), "mapping_dff": 64}
    message = refusal(plain_layout(classes), config)
    assert message.startswith("config key 'mapping_dff' is unknown; known are img_channels, ")


UNKNOWN = [
    "unet.cross_attn.weight",
    "unet.mid_level.1.attn.ff.bias",
    "unet.mapping_cond_in_proj.weight",
    "unet.down_levels.0.0.attn.self_attn.qkv_proj.bias",
    "optimizer.step",
    "logvar_linear.scale",
    "unet.up_levels.2.0.attn.self_attn.scale",
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_leftovers_are_refused_by_name(classes: Denoiser, name: str) -> None:
    state = {**authors_layout(classes), name: torch.zeros(3)}
    message = refusal(state, short_config(classes.config))
    assert message == f"this network has no tensor '{name}'"


@pytest.mark.parametrize("layout", [authors_layout, plain_layout])
def test_no_tensor_may_be_absent(classes: Denoiser, layout: Callable) -> None:
    """Rotary frequencies aside, nothing is quietly left at its random start."""
    state, config = layout(classes), full_config(classes.config)
    for name in [name for name in state if not name.endswith("pos_emb.freqs")]:
        refusal({other: tensor for other, tensor in state.items() if other != name}, config)


@pytest.mark.parametrize(
    "name",
    [
        "unet.time_emb.weight",
        "unet.aug_emb.weight",
        "unet.mapping.out_norm.scale",
        "unet.up_levels.1.0.attn.ff.up_proj.weight",
        "unet.mid_level.0.attn.self_attn.jk_proj.weight",
        "unet.splits.0.fac",
        "logvar_linear.bias",
        "logvar_fourier.phases",
    ],
)
def test_missing_tensors(name: str) -> None:
    state = authors_layout(random_denoiser(BASE))
    del state[name]
    ours = name.removeprefix("unet.").replace(".attn.", ".")
    ours = ours.replace("logvar_linear", "logvar.linear").replace("logvar_fourier", "logvar")
    message = refusal(state, short_config(BASE))
    assert message == f"the state dict has no tensor '{ours}'"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "unet.up_levels.0.1.attn.self_attn.qkv_proj.weight",
            "tensor 'unet.up_levels.0.1.attn.self_attn.qkv_proj.weight' is (5, 7), but this "
            "network needs (144, 48)",
        ),
        (
            "unet.patch_out.proj.weight",
            "'patch_out.proj.weight' gives 5 values, no multiple of the 12 of a 2×2 patch with 3 "
            "channels",
        ),
        (
            "unet.out_norm.scale",
            "tensor 'unet.out_norm.scale' is (5, 7), but this network needs (48,)",
        ),
    ],
)
def test_tensors_of_another_shape(classes: Denoiser, name: str, sentence: str) -> None:
    state = {**authors_layout(classes), name: torch.zeros(5, 7)}
    assert refusal(state, short_config(classes.config)) == sentence


def test_a_whole_checkpoint_is_refused(classes: Denoiser) -> None:
    state = {"ema": plain_layout(classes), "step": 7}
    assert refusal(state, short_config(classes.config)) == (
        "'ema' is a dict, not a tensor: give the state dict itself"
    )


def test_the_same_parameter_twice(classes: Denoiser) -> None:
    state = plain_layout(classes)
    state["module.out_norm.scale"] = state["out_norm.scale"]
    assert refusal(state, short_config(classes.config)) == (
        "tensors 'out_norm.scale' and 'module.out_norm.scale' are the same parameter"
    )


def test_nothing_at_all() -> None:
    message = refusal({}, short_config(BASE))
    assert message == "the state dict has no tensor 'patch_in.proj.weight'"


@pytest.mark.parametrize("prefix", ["ema.", "ema_model.module.", "model.diffusion_model."])
@pytest.mark.parametrize("layout", [authors_layout, plain_layout])
def test_what_stands_before_all_names_does_not_matter(prefix: str, layout: Callable) -> None:
    denoiser = random_denoiser(BASE)
    state = {prefix + name: tensor for name, tensor in layout(denoiser).items()}
    state["n_averaged"] = torch.tensor(3)
    loaded = from_reference(state, short_config(BASE))
    assert torch.equal(outputs(loaded)[0], outputs(denoiser)[0])


def test_two_networks_are_refused(classes: Denoiser) -> None:
    state = plain_layout(classes)
    both = state | {f"ema.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(ValueError, match=r"^the state dict holds several networks, named '' and "):
        from_reference(both, short_config(classes.config))


def test_levels_of_a_network_that_is_not_joint() -> None:
    config = VARIANTS["blind"]
    given = short_config(config) | {"joint": False, "joint_levels": [True] * 3, "d_ffs": None}
    loaded = from_reference(plain_layout(random_denoiser(config)), given)
    assert not any(level.joint for level in loaded.config.levels)


def test_a_log_variance_of_another_width() -> None:
    denoiser = random_denoiser(dataclasses.replace(BASE, logvar_channels=32))
    loaded = from_reference(authors_layout(denoiser), short_config(BASE) | {"logvar_channels": 32})
    sigma = torch.tensor([0.1, 3.0])
    torch.testing.assert_close(loaded.log_variance(sigma), denoiser.log_variance(sigma))


def test_values_that_are_not_finite(classes: Denoiser) -> None:
    state = plain_layout(classes)
    state["mid_level.0.ff.down_proj.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^tensor 'mid_level.0.ff.down_proj.weight' is not fini"):
        from_reference(state, short_config(classes.config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"img_channels": 0}, "config has img_channels 0, which is no number of colours"),
        (
            {"img_resolution": [8, None]},
            "config has img_resolution [8, None], which is not one or tw",
        ),
        ({"img_resolution": -8}, "config has img_resolution -8, which is not one or two"),
        ({"self_attns": ["global"]}, "config has self_attns ['global'], which is no list of map"),
        ({"sigma_data": "0.5"}, "sigma_data 0.5 must be a positive number"),
    ],
)
def test_values_of_another_kind(classes: Denoiser, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        from_reference(plain_layout(classes), short_config(classes.config) | change)
