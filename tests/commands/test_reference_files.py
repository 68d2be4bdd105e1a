"""Reference files say which data set they are of, and serve no other one."""

from pathlib import Path

from calling import DATA, DISTANCES, call, gen, metrics, refused
from pictures import png

from datautils import get_dataset
from datautils.identity import identity
from metrics.statistics import load_reference


def folder_of(path: Path, first: int) -> tuple[str, ...]:
    """Options for a folder of eight pictures with names from a number on."""
    path.mkdir()
    for i in range(8):
        (path / f"{first + i}.png").write_bytes(png(i, (16, 16)))
    return "--data", "ImageDir", "--data-opt", f"path={path}", "--split", "all"


def test_a_reference_says_what_it_is_of(home):
    photos = get_dataset("Photos", "heldout", resolution=16, size=8)
    found = load_reference(home / "ref.safetensors")
    assert found.dataset == identity(photos)
    assert found.images == 8 and found.detectors["six"].sha256
    assert found.description["data_opt"] == dict(option.split("=") for option in DATA[1::2])


def test_a_reference_of_another_data_set_is_refused(home, tmp_path):
    first, second = (folder_of(tmp_path / name, i) for name, i in (("a", 0), ("b", 50)))
    ref = tmp_path / "own.safetensors"
    made = call(home, "ref", *first, "--dest", ref, *DISTANCES[2:])
    assert made.exit_code == 0, made.output
    distance = "--metrics", "fd", "--ref", ref, *DISTANCES[2:], "--baselines", "pinv"
    net = "--sampler", "mmse", "--net", "net.safetensors", "--degradation", "Box"

    def measured(data: tuple[str, ...], out: str, *more: str):
        return call(home, "gen", *data, *net, *distance, "--outdir", tmp_path / out, *more)

    refused(measured(second, "refused"), "own.safetensors", "8 images", "--any-count")
    assert measured(first, "same").exit_code == 0
    assert measured(second, "other", "--any-count").exit_code == 0
    assert metrics(tmp_path / "other")["settings"]["any_count"]


def test_a_reference_that_does_not_say_so_is_taken(home, tmp_path, monkeypatch):
    monkeypatch.setattr("commands.ref.asdict", lambda found: None)
    ref = tmp_path / "old.safetensors"
    assert call(home, "ref", *DATA, "--dest", ref, *DISTANCES[2:]).exit_code == 0
    assert load_reference(ref).dataset is None
    result = gen(home, tmp_path / "out", "--metrics", "fd", "--ref", ref, *DISTANCES[2:])
    assert result.exit_code == 0, result.output
