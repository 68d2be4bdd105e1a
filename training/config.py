"""The settings of a training run: one YAML file, overridden by command-line options."""

import dataclasses
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import yaml

from runtime.cli import option
from runtime.reader import OBJECTIVES, PRECISIONS, read
from runtime.records import parse_yaml, plain

_ABOVE_0 = (
    *("batch", "duration", "lr", "P_std", "log_every", "checkpoint_every", "snapshot_every"),
    *("ema_halflife", "keep_checkpoints", "validate_images", "sheet_images", "max_skipped"),
    *("components", "batch_gpu", "max_minutes", "decay", "poisson_peak", "clip"),
)
_FROM_0 = (
    *("noise_level", "seed", "ramp", "workers", "ema_ramp", "validate_every", "measure_every"),
    "keep_every",
)
_SHARES = ("mmse_share", "clean_share", "label_dropout", "cooldown", "augment")
# What may change when a run is resumed.
_FREE = (
    *("duration", "max_minutes", "workers", "batch_gpu", "log_every", "validate_every"),
    *("checkpoint_every", "keep_checkpoints", "keep_every", "snapshot_every", "sheet_every"),
    *("sheet_images", "measure_every", "ref_path", "detectors", "trust_detector", "skip_broken"),
    *("max_skipped", "compile", "recompute", "fsdp", "tensorboard", "wandb"),
)
NARROWEST = 1e-4  # of the widths σ_rel of power-function averages
WIDEST = 12**-0.5  # that of the plain mean over all of training, γ = 0


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run; counts are numbers of images unless said otherwise.

    Each is a line of a settings file, and nearly each an option of `train.py`.
    """

    preset: str = option("Network preset (networks.PRESETS).", "FFHQ64")
    network: dict[str, Any] = option(
        "Fields (networks.NetworkConfig) that replace those of the preset.", {}, name=""
    )
    init: str | None = option(
        "Weights file of the same architecture to start from: fine-tuning. Else random ones.", None
    )
    data_class: str = option("The data set.", "datautils.photos.Photos", name="")  # --data
    data: dict[str, Any] = option(
        "Option of the data set, such as path=FILE; in a file a mapping.", {}, name="--data-opt"
    )
    skip_broken: bool = option(
        "Replace a broken image by the next sound one and count it; else it ends the run.", False
    )
    degradation: str | None = option(
        "Family of operators to train on; none trains an unconditional denoiser.", None
    )
    degradation_opt: dict[str, Any] = option("Options of the family, by name.", {})
    blind: bool = option(
        "Leave the operator out of the network (Palette).", False, name="--blind-train"
    )
    noise_level: float = option("Standard deviation of the noise on y; images are in [-1, 1].", 0.0)
    noise_range: tuple[float, ...] = option(
        "Smallest and largest level instead: every image draws its own, the network knows it.", ()
    )
    clean_share: float = option("With noise_range: the share of the samples without noise.", 0.0)
    poisson_peak: float | None = option(
        "Photon noise instead: the expected number of photons of a white measurement.", None
    )
    objective: str = option(
        "What the network learns: denoising (the method), mmse (the one-step MMSE estimate alone), "
        "indi (the rival InDI), unrolled (10 steps of DDRM, end to end, by an unconditional "
        "network), nppc (the MMSE estimate and principal components of the posterior).",
        "denoising",
        choices=OBJECTIVES,
    )
    components: int = option("With the objective nppc: the number of components.", 5)
    augment: float = option(
        "Probability of each non-leaking augmentation (EDM); 0 leaves augmentation out.", 0.0
    )
    batch: int = option("Images in a step, over all processes.", 512, name="-b --batch")
    batch_gpu: int | None = option(
        "Images that a process handles at once; by default its whole share of the batch.", None
    )
    duration: int = option("Images to train on.", 2**25)
    max_minutes: float | None = option(
        "Wall-clock budget; the run and its schedule end with whichever comes first.", None
    )
    seed: int = option("Seed of everything random.", 0)
    lr: float = option("Learning rate after the ramp.", 5e-5)
    ramp: int = option("Images over which the learning rate rises from zero.", 2**22)
    decay: int | None = option(
        "Steps after which the learning rate falls as an inverse square root; none keeps it.", 2**15
    )
    cooldown: float = option(
        "Last share of the run in which the learning rate falls linearly to zero.", 0.0
    )
    betas: tuple[float, ...] = option("Coefficients of Adam: two numbers.", (0.9, 0.99))
    clip: float | None = option(
        "Largest norm of the gradients: longer ones are scaled down to it; none leaves them.", None
    )
    max_skipped: int = option(
        "Steps in a row without finite gradients that are skipped; after more the run ends.", 50
    )
    P_mean: float = option("Mean of ln σ in training.", -0.8, name="--P_mean")
    P_std: float = option("Standard deviation of ln σ in training.", 1.6, name="--P_std")
    mmse_share: float = option(
        "Share of the samples trained at σ = 100, where the one-step MMSE estimate lives.", 0.0
    )
    label_dropout: float = option(
        "Share of the samples whose class is hidden.", 0.0, name="--label-drop"
    )
    ema_halflife: int = option("Half-life of the weight average.", 500 * 2**10)
    ema_ramp: float = option("The half-life is at most this share of the images seen.", 0.05)
    ema_sigma_rel: tuple[float, ...] = option(
        "Relative widths of power-function averages beside it (EDM2), such as 0.05 and 0.1: of "
        "their snapshots `python -m training.posthoc` makes averages of any width.",
        (),
    )
    snapshot_every: int = option("Snapshots of these averages, every so many images.", 2**23)
    precision: str = option(
        "Arithmetic of the network: fp32, bf16 or fp16; auto takes what the device is fast at.",
        "auto",
        choices=PRECISIONS,
    )
    log_every: int = option("A line of the log, every so many images.", 2**13)
    validate_every: int = option(
        "Held-out PSNR of the MMSE estimate for each family; 0 leaves it out.", 2**20
    )
    validate_images: int = option("Held-out images of it.", 64)
    ref_path: str | None = option(
        "Reference statistics of held-out images; their Fréchet distances are then logged.", None
    )
    detectors: dict[str, str] = option(
        "Weights files of the reference's detectors by name; else those in the cache.",
        {},
        name="--detector",
    )
    trust_detector: bool = option("Run detectors that are TorchScript files, so programs.", False)
    measure_every: int = option(
        "Fréchet distances of as many restorations as the reference has images; 0: never.", 2**22
    )
    sheet_every: int | None = option(
        "A picture of restored held-out images, always the same ones, or of drawn ones if there is "
        "no degradation; 0 leaves it out.",
        None,
        shown="as --validate-every",
    )
    sheet_images: int = option("Images of such a picture.", 4)
    checkpoint_every: int = option("A checkpoint, every so many images.", 2**20)
    keep_checkpoints: int = option("The newest checkpoints stay.", 2)
    keep_every: int = option(
        "And for good the first one after each multiple of as many images; 0 keeps none so.", 0
    )
    workers: int = option("Processes that load data, for each training process.", 4)
    compile: bool = option(
        "Compile the network: a minute or more for each structure of operators, then faster.", False
    )
    recompute: tuple[float, ...] = option(
        "Levels of the network, 0 the finest, that keep no activations but compute them again "
        "in the backward pass: less memory for more time.",
        (),
    )
    fsdp: bool = option(
        "Share weights, gradients and averages out to the processes: networks beyond a GPU.", False
    )
    tensorboard: bool = option("Log to TensorBoard too, in the run's folder.", False)
    wandb: str | None = option("Log to this project of Weights & Biases too.", None)

    def __post_init__(self) -> None:
        for name in _ABOVE_0:
            value = getattr(self, name)
            self._require(value is None or value > 0, name, "a number above 0")
        for name in _FROM_0:
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in _SHARES:
            self._require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        for name, value in vars(self).items():
            self._require(value != "", name, "a text of at least one letter")
        self._require(self.sheets >= 0, "sheet_every", "0 or more")
        self._require(self.seed < 2**63, "seed", "below 2^63")
        self._require(self.objective in OBJECTIVES, "objective", " or ".join(OBJECTIVES))
        self._require(self.precision in PRECISIONS, "precision", " or ".join(PRECISIONS))
        sound = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self._require(sound, "betas", "two numbers from 0 to below 1")
        if self.noise_range:
            sound = len(self.noise_range) == 2 and 0 <= self.noise_range[0] < self.noise_range[1]
            self._require(sound, "noise_range", "two rising numbers from 0 on")
        widths = self.ema_sigma_rel
        sound = all(NARROWEST <= width <= WIDEST for width in widths)
        sound = sound and len({f"{width:g}" for width in widths}) == len(widths)
        accepted = f"widths from {NARROWEST} to {WIDEST:.4f} that differ"
        self._require(sound, "ema_sigma_rel", accepted)
        self._check_contradictions()

    def _require(self, sound: bool, name: str, accepted: str) -> None:
        if not sound:
            raise ValueError(f"{name}={getattr(self, name)!r} must be {accepted}")

    def _check_contradictions(self) -> None:
        kinds = ("noise_level", "noise_range", "poisson_peak")
        given = [f"{name}={getattr(self, name)}" for name in kinds if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two kinds of noise: give one of them")
        if self.clean_share and not self.noise_range:
            raise ValueError(f"clean_share={self.clean_share} goes with a noise_range")
        if self.compile and self.fsdp:
            raise ValueError("compile makes one graph of what fsdp gathers in blocks: choose one")
        if self.degradation_opt and not self.degradation:
            raise ValueError(
                f"degradation_opt={self.degradation_opt} are options of no degradation"
            )
        if self.blind and not self.degradation:
            raise ValueError("blind leaves H out of a conditional network: give a degradation")
        if self.objective != "denoising" and not self.degradation:
            raise ValueError(f"objective={self.objective} starts from y: give a degradation")
        if self.objective == "unrolled" and self.blind:
            raise ValueError("objective=unrolled is for an unconditional network: leave out blind")
        if self.detectors and not self.ref_path:
            raise ValueError("detectors measure distances to a reference: give a ref_path")

    @property
    def sheets(self) -> int:
        """After how many images a sheet is drawn, 0 if never."""
        return self.validate_every if self.sheet_every is None else self.sheet_every

    @classmethod
    def load(cls, path: Path | None, overrides: dict[str, Any]) -> Self:
        """Defaults, then the YAML file, then the overrides, text or values. If an override names
        another data set or family than the file, the options that the file gives it are dropped.

        `base` in the file names another one beside it, whose settings it changes. Raises ValueError
        that names the file and the setting at fault.
        """
        values = _read_yaml(path) if path else {}
        if path and (base := values.pop("base", None)):
            values = _read_yaml(path.parent / str(base)) | values
        if values.pop("mse_train", "false") == "true":  # of earlier versions
            values["objective"] = "mmse"
        types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
        for name in (*values, *overrides):
            if name not in types:
                where = f"{path}: " if name in values else ""
                raise ValueError(f"{where}unknown setting '{name}'; known are {', '.join(types)}")
        for kind, its_options in (("data_class", "data"), ("degradation", "degradation_opt")):
            named = kind in values and kind in overrides
            if named and not same_class(values[kind], overrides[kind]):
                values.pop(its_options, None)

        def typed(values: dict[str, Any]) -> dict[str, Any]:
            return {name: read(value, types[name], name) for name, value in values.items()}

        optional = {name for name, kind in types.items() if type(None) in get_args(kind)}
        nothing = {k for k, v in overrides.items() if v in ("none", "null") and k in optional}
        try:
            return cls(**typed(values | overrides | dict.fromkeys(nothing)))
        except ValueError as error:
            with suppress(ValueError):
                cls(**typed(values))
                path = None  # the file alone is sound: the overrides are at fault
            raise ValueError(f"{path}: {error}" if path else str(error)) from None

    def check_resumes(self, before: Self) -> None:
        """Raise ValueError if a setting differs that may not change when a run is resumed."""
        now, then = self.fixed(), before.fixed()
        if changed := [name for name in now if now[name] != then[name]]:
            free = ", ".join(_FREE)
            raise ValueError(f"{changed[0]} cannot change when a run is resumed; only {free} can")

    def fixed(self) -> dict[str, Any]:
        """The settings that stay the same when a run goes on, as JSON has them.

        Data sets and families have one name, whichever was given. Where data lies is left out: a
        checkpoint knows what they are.
        """
        from datautils import DATASETS  # imports torch, which takes seconds

        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in _FREE}
        values["data_class"] = DATASETS.get(self.data_class, self.data_class)
        values["data"] = {k: v for k, v in self.data.items() if not k.endswith("path")}
        # Their classes alone know the types of options: `config: no` may be a text.
        for name in ("data", "degradation_opt"):
            values[name] = _guessed(values[name])
        text = json.dumps(plain(values), default=str)
        return json.loads(text.replace('"degradation.', '"'))

    def dump(self) -> str:
        """The resolved settings as YAML."""
        return yaml.safe_dump(plain(dataclasses.asdict(self)), sort_keys=False)


def same_class(first: Any, second: Any) -> bool:
    """Whether two names are of one class: one may leave out its module."""
    names = [str(name) for name in (first, second)]
    short = [name.rpartition(".")[2] for name in names]
    return names[0] == names[1] or (short[0] == short[1] and any(n in names for n in short))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        values, guesses = parse_yaml(text, guess=False), parse_yaml(text)
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from None
    except ValueError as error:  # or no text
        raise ValueError(f"{path} is no valid YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold settings as 'name: value' lines")
    return values | {name: guesses[name] for name in ("network",) if name in values}


def _guessed(value: Any) -> Any:
    """Options of classes in one form, whether they were read by their types or are texts yet."""
    if isinstance(value, dict):
        return {key: _guessed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guessed(item) for item in value]
    try:
        return parse_yaml(value) if isinstance(value, str) else value
    except ValueError:
        return value
