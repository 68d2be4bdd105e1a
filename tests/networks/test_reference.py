"""Weights of other implementations: both layouts, what is told by the tensors, what is refused."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runner import Runner
from torch import Tensor

from networks import Denoiser, load_weights, make_config, read_summary
from networks.reference import from_reference, main, reference_config

CONDITIONINGS = ("invfusion", "blind", "unconditional")


def random_denoiser(conditioning: str = "invfusion", classes: int = 0) -> Denoiser:
    """A network without zeros."""
    denoiser = Denoiser(make_config("tiny", conditioning, num_classes=classes))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
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


def prefixed(prefix: str, layout: Callable[[Denoiser], dict[str, Tensor]]) -> Callable:
    return lambda denoiser: {f"{prefix}{name}": t for name, t in layout(denoiser).items()}


LAYOUTS: dict[str, Callable[[Denoiser], dict[str, Tensor]]] = {
    "authors": authors_layout,
    "plain": plain_layout,
    "parallel": prefixed("module.", authors_layout),
    "compiled": prefixed("_orig_mod.", plain_layout),
    "inner": prefixed("inner_model.", plain_layout),
}


def same(a: Denoiser, b: Denoiser, head: bool) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for (name, x), y in pairs if head or "logvar" not in name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout: str) -> None:
    ours = random_denoiser()
    loaded = from_reference(LAYOUTS[layout](ours), ours.config)
    head = "logvar_linear.weight" in str(LAYOUTS[layout](ours).keys())
    assert same(loaded, ours, head) and not loaded.training
    if not head:
        assert not loaded.log_variance(torch.tensor([1.0])).any()


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("classes", [0, 3])
def test_the_tensors_tell_the_conditioning_and_the_classes(conditioning: str, classes: int) -> None:
    ours = random_denoiser(conditioning, classes)
    assert reference_config(authors_layout(ours), "tiny") == ours.config


def test_grey_networks_and_unknown_presets() -> None:
    ours = Denoiser(make_config("tiny", "blind", (1, 16, 16)))
    assert reference_config(authors_layout(ours), "tiny", (1, 16, 16)) == ours.config
    with pytest.raises(ValueError, match="unknown network 'nope'"):
        reference_config(authors_layout(ours), "nope")


def test_rotary_frequencies_and_counters_of_wrappers_may_be_missing_or_there() -> None:
    ours = random_denoiser()
    state = {k: v for k, v in authors_layout(ours).items() if not k.endswith("pos_emb.freqs")}
    state["n_averaged"] = torch.tensor(7)
    assert same(from_reference(state, ours.config), ours, head=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_out.proj.weight": None}, "'net.patch_out.proj.weight' is missing"),
        ({"extra.weight": torch.ones(2)}, "'net.extra.weight' is unknown"),
        ({"out_norm.scale": torch.ones(7)}, "'net.out_norm.scale' is (7,) instead of (48,)"),
        ({"out_norm.scale": torch.full((48,), torch.nan)}, "'net.out_norm.scale' of the other"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], words: str) -> None:
    ours = random_denoiser()
    state = {**plain_layout(ours), **change}
    with pytest.raises(ValueError, match=re.escape(words)):
        from_reference({k: v for k, v in state.items() if v is not None}, ours.config)


# ---- the command


def test_the_command_makes_a_weights_file(tmp_path: Path) -> None:
    ours = random_denoiser("blind", classes=2)
    torch.save({"model_ema": authors_layout(ours), "step": 5}, tmp_path / "other.pth")
    dest = tmp_path / "ours.safetensors"
    arguments = [str(tmp_path / "other.pth"), str(dest), "--preset=tiny", "--key=model_ema"]
    result = Runner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    loaded = load_weights(dest)
    assert isinstance(loaded, Denoiser) and loaded.config == ours.config
    assert same(loaded, ours, head=True)
    assert read_summary(dest)["source"] == "other.pth"


class Pwned:
    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path("pwned"), ""))


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (Pwned(), ["--preset=tiny"], "holds more than plain tensors"),
        ({"net": {"a": torch.ones(1)}}, ["--preset=tiny"], "it has net"),
        ({"net": {}}, ["--preset=tiny", "--key=ema"], "entry 'ema'; it has net"),
        ({"a": torch.ones(1)}, ["--preset=tiny"], "no network of this kind"),
        (None, ["--preset=small32"], "do not fit the network"),
    ],
)
def test_other_files_are_refused(
    content: object, options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(plain_layout(random_denoiser()) if content is None else content, "file.pkl")
    result = Runner().invoke(main, ["file.pkl", "out.safetensors", *options])
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.pkl"]


def test_a_preset_of_another_size(tmp_path: Path) -> None:
    ours = random_denoiser()
    larger = dataclasses.replace(ours.config, image_shape=(3, 32, 32))
    assert reference_config(plain_layout(ours), "tiny", (3, 32, 32)) == larger
