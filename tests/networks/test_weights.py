"""Weights files: what goes in comes out, and a damaged file raises an error."""

import dataclasses
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from networks import Denoiser, NetworkConfig, load_weights, make_config, read_summary, save_weights
from networks import weights as module
from networks.analytic import GaussianMixture
from runtime import files

SUMMARY = {"preset": "tiny", "images": 1 << 20, "loss": 0.125, "degradations": ["matrix", "μ"]}


def random_denoiser(config: NetworkConfig) -> Denoiser:
    """Parameters of every exponent, so that a change of precision cannot go unseen."""
    denoiser = Denoiser(config)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(torch.randn_like(parameter) * torch.rand_like(parameter).exp2())
    return denoiser


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_weights(path, random_denoiser(make_config("tiny")), SUMMARY)
    return path


def parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file."""
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()[module.METADATA_KEY])


def rewrite(path: Path, tensors: dict[str, Tensor], description: Any) -> None:
    text = description if isinstance(description, str) else json.dumps(description)
    save_file(tensors, path, {module.METADATA_KEY: text})


def refusal(path: Path) -> str:
    """The sentence with which a file is refused: one line that names the file."""
    with pytest.raises(ValueError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message and not message.endswith(".")
    return message


# ---- round trip ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        make_config("tiny"),
        make_config("tiny", "blind", (3, 8, 12)),
        make_config("tiny", "unconditional", num_classes=7),
        dataclasses.replace(
            make_config("tiny"), out_mult=4, noise_conditioning=True, sigma_data=0.3
        ),
    ],
    ids=["invfusion", "blind", "unconditional", "components"],
)
def test_round_trip_is_exact(tmp_path: Path, config: NetworkConfig) -> None:
    path = tmp_path / "new" / "folder" / "net.safetensors"
    denoiser = random_denoiser(config)
    save_weights(path, denoiser, SUMMARY)
    loaded = load_weights(str(path))
    assert loaded.config == config
    assert not loaded.training
    assert read_summary(str(path)) == SUMMARY
    expected, found = denoiser.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [path] == list(path.parent.iterdir())  # nothing unfinished left behind


def test_a_file_describes_itself(saved: Path) -> None:
    _, description = parts(saved)
    assert description["format"] == 1
    assert description["conditioning"] == "invfusion"
    assert description["config"]["levels"][0]["width"] == 48
    assert description["config"]["image_shape"] == [3, 16, 16]
    assert description["summary"] == SUMMARY


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    state = torch.get_rng_state()
    load_weights(saved)
    assert torch.equal(state, torch.get_rng_state())


def test_a_loaded_network_does_not_hang_on_its_file(saved: Path) -> None:
    loaded = load_weights(saved)
    before = [parameter.clone() for parameter in loaded.parameters()]
    with saved.open("r+b") as file:
        file.write(b"\0" * saved.stat().st_size)
    assert all(map(torch.equal, before, loaded.parameters()))


def test_half_precision_files_load_in_float32(saved: Path) -> None:
    tensors, description = parts(saved)
    rewrite(saved, {name: tensor.half() for name, tensor in tensors.items()}, description)
    for name, tensor in load_weights(saved).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].half().float())


def test_a_compiled_network_is_saved_under_plain_names(tmp_path: Path) -> None:
    denoiser = random_denoiser(make_config("tiny"))
    expected = denoiser.net.patch_in.proj.weight.clone()
    denoiser.net = torch.compile(denoiser.net)  # wraps; nothing is compiled before the first call
    assert any("_orig_mod" in name for name in denoiser.state_dict())
    save_weights(tmp_path / "net.safetensors", denoiser, {})
    loaded = load_weights(tmp_path / "net.safetensors")
    assert torch.equal(loaded.net.patch_in.proj.weight, expected)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    denoiser = Denoiser(make_config("tiny"))
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "net.safetensors", denoiser, {})
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o640


# ---- a save that fails --------------------------------------------------------------------------


def fail(*args: Any, **kwargs: Any) -> None:
    raise OSError("no space left on device")


def write_half(tensors: Any, path: Path, metadata: Any) -> None:
    path.write_bytes(b"half of a file")
    fail()


@pytest.mark.parametrize(
    ("target", "name", "replacement"),
    [(files, "save_file", write_half), (os, "fsync", fail), (os, "replace", fail)],
    ids=["write", "fsync", "rename"],
)
def test_a_failing_save_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, replacement: Callable
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(target, name, replacement)
    with pytest.raises(OSError, match="no space left"):
        save_weights(saved, random_denoiser(make_config("tiny")), {"step": 2})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_full_disk_is_an_error_of_the_file(saved: Path) -> None:
    before, (soft, hard) = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"net\.safetensors cannot be written: "):
            save_weights(saved, random_denoiser(make_config("tiny")), {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_file_is_on_the_disk_before_it_has_its_name(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync comes after the last byte and before the rename, and the bytes are complete by then."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths))[1])
    save_weights(saved, Denoiser(make_config("tiny")), {"step": 2})
    assert order == ["fsync", "replace"]
    assert read_summary(saved) == {"step": 2}


def test_a_summary_that_json_cannot_hold_touches_nothing(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        save_weights(saved, Denoiser(make_config("tiny")), {"loss": object()})
    assert saved.read_bytes() == before


# ---- files that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("read", [load_weights, read_summary])
def test_missing_file(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        read(path)
    assert str(caught.value) == f"there is no weights file {path}"


@pytest.mark.parametrize("kept", [0, 5, 500, -1], ids=lambda n: f"{n} bytes")
@pytest.mark.parametrize("read", [load_weights, read_summary])
def test_cut_off_file(saved: Path, kept: int, read: Callable) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    message = f"{saved} is no safetensors file, or it is damaged or cut off"
    with pytest.raises(ValueError) as caught:
        read(saved)
    assert str(caught.value) == message


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" * 40, b"text\n" * 100, b"{}" * 99])
def test_other_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert "is no safetensors file" in refusal(path)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_not_opened(tmp_path: Path, zipped: bool) -> None:
    trapped, path = tmp_path / "trapped", tmp_path / "net.pt"
    torch.save({"ema": Trap(trapped)}, path, _use_new_zipfile_serialization=zipped)
    assert "is a PyTorch pickle, and pickles are never opened here" in refusal(path)
    assert not trapped.exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_that_does_not_say_what_it_is(saved: Path, metadata: dict | None) -> None:
    save_file(parts(saved)[0], saved, metadata)
    assert "holds tensors, but does not say of which network" in refusal(saved)


@pytest.mark.parametrize("text", ["{", "", "7", "[1]", "{}", '"format"', "null"])
def test_a_damaged_description(saved: Path, text: str) -> None:
    rewrite(saved, parts(saved)[0], text)
    assert "the description inside" in refusal(saved)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version(saved: Path, version: Any) -> None:
    tensors, description = parts(saved)
    rewrite(saved, tensors, {**description, "format": version})
    assert f"has weights format {version}, and this version of the project" in refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"patch": 3},  # does not divide the image
        {"levels": [{"depth": 1}]},
        {"levels": 7},
        {"image_shape": [3, 16]},
        {"image_shape": None},
        {"image_shape": [3, 16.0, 16]},
        {"image_shape": [3, -16, -16]},
        {"image_shape": [3, 0, 0]},
        {"num_classes": True},
        {"levels": [{"depth": 1.0, "width": 48}]},
        {"colour": "blue"},
    ],
    ids=str,
)
def test_a_network_that_cannot_be_built(saved: Path, change: dict[str, Any]) -> None:
    tensors, description = parts(saved)
    config = {**description["config"], **change}
    rewrite(saved, tensors, {**description, "config": config})
    assert refusal(saved).startswith(f"the network described inside {saved}")


def test_a_missing_configuration(saved: Path) -> None:
    tensors, description = parts(saved)
    del description["config"]
    rewrite(saved, tensors, description)
    assert refusal(saved) == f"the network described inside {saved} lacks image_shape"


@pytest.mark.parametrize(
    "summary",
    [
        *([], None, "text", 7, {"noise_level": "0.1"}, {"noise_range": 0.1}),
        *({"mse_train": 1}, {"poisson_peak": "a"}),
    ],
    ids=str,
)
def test_a_summary_of_the_wrong_kind(saved: Path, summary: Any) -> None:
    tensors, description = parts(saved)
    rewrite(saved, tensors, {**description, "summary": summary})
    with pytest.raises(ValueError, match=r"^the (summary|description) inside"):
        read_summary(saved)


def test_nothing_that_a_weights_file_says_is_imported(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved.parent / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(saved.parent))
    monkeypatch.delitem(sys.modules, "planted", raising=False)  # another test's
    tensors, description = parts(saved)
    name = "planted.Class"
    says = {"data": name, "degradation": name, "init": name, "precision": name}
    rewrite(saved, tensors, description | {"summary": says, "conditioning": name, "kind": name})
    assert read_summary(saved) == says
    load_weights(saved)
    assert "planted" not in sys.modules


@pytest.mark.parametrize("shape", [[-3, -2, 2], [3, 2], [3.0, 2, 2], None])
def test_a_prior_of_no_shape(tmp_path: Path, shape: Any) -> None:
    path = tmp_path / "prior.safetensors"
    save_weights(path, GaussianMixture.gaussian(torch.zeros(12), torch.eye(12), (3, 2, 2)), {})
    tensors, description = parts(path)
    rewrite(path, tensors, {**description, "config": {"image_shape": shape}})
    assert refusal(path).startswith(f"the prior described inside {path}")


def without_first(tensors: dict[str, Tensor]) -> None:
    del tensors["net.patch_in.proj.weight"]


def with_another(tensors: dict[str, Tensor]) -> None:
    tensors["net.extra"] = torch.zeros(2)


def reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["net.out_norm.scale"] = torch.ones(24)


def broken(tensors: dict[str, Tensor]) -> None:
    tensors["net.mid_level.0.ff.up_proj.weight"][3, 4] = torch.nan


def whole(tensors: dict[str, Tensor]) -> None:
    tensors["net.out_norm.scale"] = tensors["net.out_norm.scale"].to(torch.int8)


def short(tensors: dict[str, Tensor]) -> None:
    tensors["net.out_norm.scale"] = tensors["net.out_norm.scale"].to(torch.float8_e5m2)


FIT = "the weights of PATH do not fit the network"
FLOATS = "it must be float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without_first, f"{FIT}: 'net.patch_in.proj.weight' is missing"),
        (with_another, f"{FIT}: 'net.extra' is unknown"),
        (reshaped, f"{FIT}: 'net.out_norm.scale' is (24,) instead of (48,)"),
        (broken, "'net.mid_level.0.ff.up_proj.weight' of PATH is not all finite"),
        (whole, f"'net.out_norm.scale' of PATH is of the type int8: {FLOATS}"),
        (short, f"'net.out_norm.scale' of PATH is of the type float8_e5m2: {FLOATS}"),
    ],
)
def test_tensors_that_do_not_fit(saved: Path, damage: Callable, sentence: str) -> None:
    tensors, description = parts(saved)
    damage(tensors)
    rewrite(saved, tensors, description)
    assert refusal(saved) == sentence.replace("PATH", str(saved))
    assert read_summary(saved) == SUMMARY  # which needs no tensors


def test_a_damaged_file_that_begins_like_a_pickle_is_called_damaged(tmp_path: Path) -> None:
    """The length of the header, its first eight bytes, may begin with a pickle's first byte."""
    path, denoiser = tmp_path / "net.safetensors", Denoiser(make_config("tiny"))
    for padding in range(0, 256, 8):
        save_weights(path, denoiser, {"padding": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    path.write_bytes(path.read_bytes()[:-100])
    assert path.read_bytes()[:1] == b"\x80"
    assert "damaged" in refusal(path)


def test_a_network_of_before_that_was_trained_for_the_mmse_estimate(saved: Path) -> None:
    tensors, description = parts(saved)
    del description["config"]["objective"]
    rewrite(saved, tensors, {**description, "summary": {"mse_train": True}})
    assert load_weights(saved).config.objective == "mmse"


@pytest.mark.parametrize("consistent", [False, True])
def test_files_of_before_with_a_field_that_is_gone(saved: Path, consistent: bool) -> None:
    tensors, description = parts(saved)
    description["config"]["consistent"] = consistent
    rewrite(saved, tensors, description)
    if consistent:
        assert "a `consistent` one, which this version no longer has" in refusal(saved)
    else:
        assert load_weights(saved).config == make_config("tiny")
