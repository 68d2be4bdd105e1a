"""Weights of other implementations of the same network.

Two layouts are read: that of the InvFusion authors (`unet.` before every name of the network, each
layer wrapped, a log-variance head beside it) and that of k-diffusion's
ImageTransformerDenoiserModelV2, both also behind the prefixes of wrappers, such as that of
DistributedDataParallel or of an average. The tensors tell the sizes; a short configuration tells
the rest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from networks.denoiser import Denoiser
from networks.invfusion import LevelConfig, NetworkConfig

CONFIG_KEYS = (
    *("img_channels", "img_resolution", "in_mult", "out_mult", "label_dim", "sigma_data"),
    *("patch_size", "depths", "widths", "d_ffs", "self_attns", "joint", "joint_levels"),
    *("mapping_width", "mapping_depth", "mapping_d_ff", "logvar_channels"),
)

# Around single modules: parallel, compiled, k-diffusion's denoiser, sharded, recomputed.
_WRAPPERS = {
    *("module", "_orig_mod", "inner_model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
}
_FIRST = "patch_in.proj.weight"
_HEAD = {"logvar_fourier": "logvar", "logvar_linear": "logvar.linear"}


def from_reference(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Denoiser:
    """A `Denoiser` in float32 and evaluation mode with the weights of another implementation.

    config: `self_attns` (for every level from fine to coarse a mapping with `type` "neighborhood"
    or "global", and `kernel_size` for the former) and `img_resolution` (a number or (h, w)) must be
    there; `img_channels` is 3 and `sigma_data` 0.5 when they are not. All other keys, named as in
    `CONFIG_KEYS`, are checked against the tensors; None is as good as not there. Counters of
    wrappers (whole numbers) are passed over. Without a log-variance head, u(σ) is zero.

    Raises ValueError, in one sentence, when config contradicts the tensors or asks for what this
    network has not, and when a tensor is missing, unknown, not finite or of the wrong shape.
    """
    config = _given(config)
    original = _our_names(state_dict)
    tensors = {ours: state_dict[theirs] for ours, theirs in original.items()}
    channels = config.get("img_channels", 3)
    if not _is_count(channels):
        raise ValueError(f"config has img_channels {channels}, which is no number of colours")
    sizes = _sizes(tensors, channels)
    _check(config, sizes)
    denoiser = Denoiser(_network_config(sizes, config))
    state = denoiser.state_dict()
    for ours, theirs in original.items():
        if ours not in state:
            raise ValueError(f"this network has no tensor '{theirs}'")
        if state[ours].shape != tensors[ours].shape:
            found, expected = tuple(tensors[ours].shape), tuple(state[ours].shape)
            raise ValueError(f"tensor '{theirs}' is {found}, but this network needs {expected}")
        if not tensors[ours].isfinite().all():
            raise ValueError(f"tensor '{theirs}' is not finite")
    for ours in state:
        if ours not in tensors and not _has_default(ours, tensors):
            raise ValueError(f"the state dict has no tensor '{ours.removeprefix('net.')}'")
    denoiser.load_state_dict({**state, **tensors})
    return denoiser.eval()


def _has_default(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Rotary frequencies are fixed, and a head may be absent as a whole, never in part."""
    if name.startswith("logvar."):
        return not any(other.startswith("logvar.") for other in tensors)
    return name.endswith(".pos_emb.freqs")


# ---- names ------------------------------------------------------------------------------------


def _our_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of every tensor, and the name it came with."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"a state dict is a mapping, not a {type(state_dict).__name__}")
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"'{name}' is a {kind}, not a tensor: give the state dict itself")
        if tensor.is_meta:
            raise ValueError(f"tensor '{name}' is on the meta device: it has no values")
    unwrapped = {
        theirs: ".".join(part for part in str(theirs).split(".") if part not in _WRAPPERS)
        for theirs, tensor in state_dict.items()
        if tensor.ndim or tensor.is_floating_point()
    }
    prefix = _prefix([*unwrapped.values()])
    names: dict[str, str] = {}
    for theirs, name in unwrapped.items():
        ours = _our_name(name.removeprefix(prefix))
        if ours in names:
            raise ValueError(f"tensors '{names[ours]}' and '{theirs}' are the same parameter")
        names[ours] = theirs
    return names


def _prefix(names: Sequence[str]) -> str:
    """What stands before every name: of an average, say, or of the part of a larger model."""
    ends = (name.removesuffix(_FIRST) for name in names if name.endswith(_FIRST))
    prefixes = {end.removesuffix("unet.") for end in ends}
    if not prefixes:
        raise ValueError(f"the state dict has no tensor '{_FIRST}'")
    if len(prefixes) > 1:
        found = " and ".join(f"'{prefix}'" for prefix in sorted(prefixes))
        raise ValueError(f"the state dict holds several networks, named {found}: give one of them")
    return prefixes.pop()


def _our_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] in _HEAD:
        return ".".join((_HEAD[parts[0]], *parts[1:]))
    if parts[0] == "unet":
        parts = parts[1:]
    return ".".join(("net", *(part for part in parts if part != "attn")))


# ---- what the tensors tell --------------------------------------------------------------------


def _sizes(tensors: Mapping[str, Tensor], channels: int) -> dict[str, Any]:
    """Everything the shapes of the tensors tell, under the keys of the configuration."""
    in_mult, patch = _input(_shape(tensors, "patch_in.proj.weight")[1], channels)
    out_values = _shape(tensors, "patch_out.proj.weight")[0]
    if out_values % (channels * patch**2):
        raise ValueError(
            f"'patch_out.proj.weight' gives {out_values} values, no multiple of the "
            f"{channels * patch**2} of a {patch}×{patch} patch with {channels} channels"
        )
    merges = _count(tensors, "merges.")
    levels = [f"down_levels.{i}." for i in range(merges)] + ["mid_level."]
    joint = tuple(_is_joint(tensors, level) for level in levels)
    widths = [_shape(tensors, "patch_in.proj.weight")[0]]
    widths += [_shape(tensors, f"merges.{i}.proj.weight")[0] for i in range(merges)]
    heads = [_shape(tensors, f"{level}0.self_attn.scale")[0] for level in levels]
    sizes = {
        "img_channels": channels,
        "in_mult": in_mult,
        "out_mult": out_values // (channels * patch**2),
        "label_dim": 0,
        "patch_size": (patch, patch),
        "depths": tuple(_count(tensors, level) for level in levels),
        "widths": tuple(widths),
        "joint": any(joint),
        "joint_levels": joint,
        "d_ffs": tuple(_shape(tensors, f"{level}0.ff.down_proj.weight")[1] for level in levels),
        "d_heads": tuple(_d_head(*pair) for pair in zip(widths, heads, strict=True)),
        "mapping_width": _shape(tensors, "time_in_proj.weight")[0],
        "mapping_depth": _count(tensors, "mapping.blocks."),
        "mapping_d_ff": _shape(tensors, "mapping.blocks.0.down_proj.weight")[1],
    }
    if "net.class_emb.weight" in tensors:
        sizes["label_dim"] = _shape(tensors, "class_emb.weight")[0] - 1  # the last row: no class
    if "logvar.freqs" in tensors:
        sizes["logvar_channels"] = len(tensors["logvar.freqs"])
    return sizes


def _input(values: int, channels: int) -> tuple[int, int]:
    """(number of input images, patch size) of a first layer that takes so many values.

    At most one holds: 2 is no square, so values / channels and half of it are not both squares.
    """
    for images in (1, 2):
        patch = math.isqrt(values // (channels * images))
        if patch and channels * images * patch**2 == values:
            return images, patch
    raise ValueError(
        f"'patch_in.proj.weight' takes {values} values, which are no square patch of one or two "
        f"images with {channels} channels"
    )


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if f"net.{name}" not in tensors:
        raise ValueError(f"the state dict has no tensor '{name}'")
    tensor = tensors[f"net.{name}"]
    expected = 1 if name.endswith("scale") else 2
    if tensor.ndim != expected or 0 in tensor.shape:
        raise ValueError(f"tensor '{name}' has the shape {tuple(tensor.shape)}")
    return tuple(tensor.shape)


def _d_head(width: int, n_heads: int) -> int:
    if width % n_heads:
        raise ValueError(f"a level of width {width} cannot have the {n_heads} heads of its scale")
    return width // n_heads


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of different entries of a module list."""
    prefix = f"net.{prefix}"
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return len({name.split(".")[0] for name in names})


def _is_joint(tensors: Mapping[str, Tensor], level: str) -> bool:
    parts = {"feature_degradation", "jnorm", "jk_proj", "jv_proj"}
    names = (name for name in tensors if name.startswith(f"net.{level}"))
    return any(not parts.isdisjoint(name.split(".")) for name in names)


# ---- what the configuration tells -------------------------------------------------------------


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the configuration that say something."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config is a mapping, not a {type(config).__name__}")
    unknown = [key for key in config if key not in CONFIG_KEYS]
    if unknown:
        known = ", ".join(CONFIG_KEYS)
        raise ValueError(f"config key '{unknown[0]}' is unknown; known are {known}")
    given = {key: value for key, value in config.items() if value is not None}
    if given.get("joint") is False:  # of the whole network: what levels would do does not matter
        given.pop("joint_levels", None)
    return given


def _check(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Raise ValueError where the configuration contradicts the tensors."""
    for key, given in config.items():
        value = _tuples(given)
        if key == "patch_size" and isinstance(value, int):
            value = (value, value)
        if key in sizes and value != sizes[key]:
            raise ValueError(f"config has {key} {given}, but the tensors have {sizes[key]}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _network_config(sizes: Mapping[str, Any], config: Mapping[str, Any]) -> NetworkConfig:
    kernels = _kernels(config, sizes["d_heads"])
    columns = (sizes[key] for key in ("depths", "widths", "d_heads", "d_ffs", "joint_levels"))
    levels = tuple(
        LevelConfig(depth, width, kernel, d_head, d_ff, joint)
        for kernel, depth, width, d_head, d_ff, joint in zip(kernels, *columns, strict=True)
    )
    return NetworkConfig(
        image_shape=(sizes["img_channels"], *_resolution(config)),
        patch=sizes["patch_size"][0],
        levels=levels,
        in_mult=sizes["in_mult"],
        out_mult=sizes["out_mult"],
        num_classes=sizes["label_dim"],
        mapping_width=sizes["mapping_width"],
        mapping_depth=sizes["mapping_depth"],
        mapping_d_ff=sizes["mapping_d_ff"],
        sigma_data=config.get("sigma_data", 0.5),
        logvar_channels=sizes.get("logvar_channels", 128),
    )


def _resolution(config: Mapping[str, Any]) -> tuple[int, int]:
    given = _required(config, "img_resolution")
    value = (given, given) if isinstance(given, int) else _tuples(given)
    if not (isinstance(value, tuple) and len(value) == 2 and all(map(_is_count, value))):
        raise ValueError(f"config has img_resolution {given}, which is not one or two sides")
    return value


def _kernels(config: Mapping[str, Any], d_heads: tuple[int, ...]) -> list[int | None]:
    """Side of the neighbourhood of every level, None where attention is global."""
    specs = _required(config, "self_attns")
    if not isinstance(specs, list | tuple) or not all(isinstance(x, Mapping) for x in specs):
        raise ValueError(f"config has self_attns {specs}, which is no list of mappings")
    if len(specs) != len(d_heads):
        raise ValueError(
            f"config has self_attns for {len(specs)} levels, but the tensors have {len(d_heads)}"
        )
    return [_kernel(f"self_attns[{i}]", spec, d_heads[i]) for i, spec in enumerate(specs)]


def _kernel(name: str, spec: Mapping[str, Any], d_head: int) -> int | None:
    if spec.get("d_head", d_head) != d_head:
        raise ValueError(
            f"config has {name} d_head {spec['d_head']}, but the tensors have {d_head}"
        )
    if spec.get("type") not in ("neighborhood", "global"):
        raise ValueError(
            f"config has {name} type '{spec.get('type')}'; only 'neighborhood' and 'global' "
            "attention can be loaded"
        )
    if spec["type"] == "global":
        return None
    if not _is_count(spec.get("kernel_size")):
        raise ValueError(f"config has {name} kernel_size {spec.get('kernel_size')}, not a number")
    return spec["kernel_size"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _required(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise ValueError(f"config must have '{key}', which the tensors do not tell")
    return config[key]
