"""Weights of other implementations of this network, read from tensors alone.

`python -m networks.reference FILE OUT.safetensors --preset FFHQ64` makes a weights file of a state
dict that torch.save wrote. Two layouts are known: that of the InvFusion authors (`unet.` before the
names of the network, each layer wrapped, a log-variance head) and that of k-diffusion's
ImageTransformerDenoiserModelV2. Nothing is unpickled but tensors.
"""

from collections.abc import Mapping
from pathlib import Path

import click
from torch import Tensor

from networks.denoiser import Denoiser
from networks.invfusion import NetworkConfig
from networks.presets import PRESETS, make_config
from networks.weights import check_tensors, save_weights
from runtime.cli import SETTINGS, Command
from runtime.errors import one_sentence_errors
from runtime.files import check_floats, check_output, read_tensors

# Around single modules: parallel, compiled, k-diffusion's denoiser, sharded, recomputed.
_WRAPPERS = {"module", "_orig_mod", "inner_model"}
_WRAPPERS |= {"_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_HEAD = {"logvar_fourier": "logvar", "logvar_linear": "logvar.linear"}
_FIRST = "net.patch_in.proj.weight"


def from_reference(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> Denoiser:
    """A `Denoiser` in float32 and evaluation mode with the weights of another implementation.

    Without a log-variance head, u(σ) is zero. Raises ValueError if a tensor is missing, unknown,
    not finite or of another shape than the configuration's.
    """
    tensors = our_names(state_dict)
    denoiser = Denoiser(config)
    expected = denoiser.state_dict()
    headless = not any(name.startswith("logvar.") for name in tensors)
    for name, tensor in expected.items():
        if name.endswith(".pos_emb.freqs") or (name.startswith("logvar.") and headless):
            tensors.setdefault(name, tensor)
    check_floats("the other network", tensors)
    check_tensors("the other network", tensors, expected)
    denoiser.load_state_dict(tensors)
    return denoiser.eval()


def our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of our `Denoiser`; counters of wrappers are left out."""
    tensors = state_dict.items()
    return {_our_name(name): t for name, t in tensors if t.ndim or t.is_floating_point()}


def _our_name(name: str) -> str:
    first, *rest = (part for part in name.split(".") if part not in _WRAPPERS)
    if first in _HEAD:
        return ".".join((_HEAD[first], *rest))
    parts = rest if first == "unet" else [first, *rest]
    return ".".join(("net", *(part for part in parts if part != "attn")))


def reference_config(
    state_dict: Mapping[str, Tensor], preset: str, image_shape: tuple[int, int, int] | None = None
) -> NetworkConfig:
    """The preset as the tensors have it: what the network knows, and the number of classes.

    Raises ValueError if the tensors are not those of such a network.
    """
    tensors = our_names(state_dict)
    if _FIRST not in tensors:
        raise ValueError("it is no network of this kind: it has no tensor 'patch_in.proj.weight'")
    classes = tensors.get("net.class_emb.weight")  # the last row is "no class"
    count = 0 if classes is None else len(classes) - 1
    known = make_config(preset, "unconditional", image_shape, count)
    if any(".feature_degradation." in name for name in tensors):
        return make_config(preset, "invfusion", image_shape, count)
    if tensors[_FIRST].shape[-1] == 2 * known.image_shape[0] * known.patch**2:
        return make_config(preset, "blind", image_shape, count)
    return known


@click.command(cls=Command, context_settings=SETTINGS)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Its architecture.")
@click.option("--size", type=click.IntRange(1), help="Side of its images, if not the preset's.")
@click.option("--key", help="Entry of the file that is the state dict, such as model_ema.")
def main(file: Path, out: Path, preset: str, size: int | None, key: str | None) -> None:
    """Make a weights file OUT of the state dict FILE of another implementation."""
    with one_sentence_errors():
        check_output(out, "OUT", ".safetensors")
        tensors, _ = read_tensors(file, key)
        shape = (PRESETS[preset].image_shape[0], size, size) if size else None
        denoiser = from_reference(tensors, reference_config(tensors, preset, shape))
        save_weights(out, denoiser, {"source": file.name})
    click.echo(f"weights: {out}")


if __name__ == "__main__":
    main()
