"""Ways to restore an image that commands can be asked for: networks with samplers, baselines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from commands.checks import check_once, options_by_name
from commands.options import CalcOptions, GenOptions
from datautils import ImageDataset, get_dataset
from datautils.identity import Identity
from degradation import Draws, Family, Problem
from metrics.baselines import constant_fill
from metrics.dataset import check_values, load_images
from metrics.detectors import DISTANCES, detectors_for
from metrics.evaluate import Restore
from metrics.keeping import FOLDER, Kept, code_of
from metrics.statistics import Distances, load_reference
from networks import (
    ASeqDIP,
    Denoiser,
    Model,
    cpu,
    fit_gaussian,
    load_weights,
    posterior_mean,
    read_summary,
)
from networks.precision import DTYPES
from networks.presets import conditioning_of
from runtime.environment import environment
from runtime.files import sha256_of
from runtime.reader import arguments
from runtime.records import parse_yaml
from samplers import (
    NPPC,
    Components,
    CountingDenoiser,
    Guided,
    Sampler,
    check_operator,
    make_sampler,
    sampler_names,
)
from samplers.base import Denoiser as Sampled
from samplers.base import option_names
from zero_shot import ZeroShot

BASELINES = ("pinv", "fill", "gaussian", "aseqdip")
COSTS = ("evaluations", "backward_passes", "network_calls", "network_backward_passes")
_GAUSSIAN_CROPS = 16_000
_PRESETS = Path(__file__).resolve().parents[1] / "configs" / "samplers" / "presets.yaml"


@dataclass
class Restorer:
    """A trained denoiser driven by a sampler; remembers the evaluations an image takes."""

    denoiser: Model
    sampler: Sampler
    precision: str
    guidance: float | None = None
    tiled: Callable[[Sampled], Sampled] | None = None
    """Makes a denoiser of larger images of the network's."""
    cost: dict[str, float] = field(default_factory=dict)

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        network = CountingDenoiser(self.denoiser)
        denoiser: Sampled = network
        if self.guidance is not None:
            denoiser = Guided(denoiser, self.guidance)
        if self.tiled is not None:
            denoiser = self.tiled(denoiser)
        counter = CountingDenoiser(denoiser, len(problem))
        with self._autocast(noise):
            restored = self.sampler(counter, noise, problem, draws)
        counts = counter.calls, counter.backward_passes, network.calls, network.backward_passes
        self.cost = dict(zip(COSTS, counts, strict=True))
        return restored

    def components(self, problem: Problem, noise: Tensor) -> Components:
        """Principal components of the posteriors, of a network and a sampler that have them."""
        assert isinstance(self.sampler, NPPC) and isinstance(self.denoiser, Denoiser)
        with self._autocast(noise):
            return self.sampler.components(self.denoiser, noise, problem)

    def _autocast(self, x: Tensor) -> torch.autocast:
        dtype = DTYPES[self.precision]
        return torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)


def kept(
    methods: Mapping[str, Restore], options: GenOptions, folder: Path, families: Iterable[Family]
) -> dict[str, Restore]:
    """The methods, those that take long with batches that are kept in a working folder until the
    evaluation is finished."""
    long = {title: m for title, m in methods.items() if isinstance(m, Restorer | ASeqDIP)}
    samplers = {title: m.sampler if isinstance(m, Restorer) else m for title, m in long.items()}
    made_with = environment()
    settings = {
        "nets": [sha256_of(net) for net in options.nets], "compiled": options.compiled,
        "precision": options.precision, "cfg": options.cfg, "onednn": cpu.uses_onednn(),
        "torch": made_with["torch"], "device": made_with["device"],
        "code": code_of([*samplers.values(), *families]),
    }  # fmt: skip
    # The title tells networks with the same sampler apart.
    return dict(methods) | {
        title: Kept(method, folder / FOLDER, settings | {"method": (title, samplers[title])})
        for title, method in long.items()
    }


def distances_of(
    names: Sequence[str],
    options: GenOptions | CalcOptions,
    device: torch.device,
    images: int,
    image_shape: tuple[int, int, int],
    dataset: Identity | None = None,
) -> Distances:
    """The distances of sets among the metrics, by the reference of the options.

    dataset: what is restored, if it must be that of the reference. Raises ValueError if the
    reference does not match, or OSError.
    """
    wanted = [metric for metric in names if metric in DISTANCES]
    if wanted and options.ref is None:
        raise ValueError(f"{', '.join(wanted)} needs reference statistics: give --ref FILE")
    if options.ref is not None and not wanted:
        known = ", ".join(DISTANCES)
        raise ValueError(f"--ref {options.ref} serves none of the metrics: add one of {known}")
    if wanted and images < 2:
        raise ValueError(f"{', '.join(wanted)} needs at least 2 images, not {images}")
    # The reference comes first: detectors may be downloaded.
    reference = None if options.ref is None else load_reference(options.ref)
    detectors = detectors_for(
        wanted, options.detectors, device, image_shape, options.trust_detector
    )
    if reference is not None:
        if dataset is not None and not options.any_count:
            reference.check_dataset(dataset)
        for metric, detector in detectors.items():
            kernel = DISTANCES[metric].kernel
            reference.check(detector, images, image_shape, options.any_count, kernel)
    return Distances(detectors, reference)


@cache
def sampler_presets() -> dict[str, dict[str, dict[str, str]]]:
    """Options by task, {sampler: {preset: options}} (configs/samplers/presets.yaml)."""
    return parse_yaml(_PRESETS.read_text(encoding="utf-8"), guess=False)


def preset_options(names: Sequence[str], preset: str | None) -> dict[str, dict[str, str]]:
    """The options of a preset for each of the samplers that has it. ValueError if none has."""
    if preset is not None and not names:
        raise ValueError(f"--sampler-preset {preset} needs a --net, which a sampler drives")
    known = {name: sampler_presets().get(name, {}) for name in names}
    found = {name: known[name][preset] for name in names if preset in known[name]}
    if preset is not None and not found:
        has = [f"{name} has {', '.join(presets) or 'none'}" for name, presets in known.items()]
        raise ValueError(f"there is no --sampler-preset {preset}: {'; '.join(has)}")
    return found


def samplers_of(
    names: Sequence[str], options: Mapping[str, str], preset: str | None = None
) -> dict[str, Sampler]:
    """Samplers by name, from options NAME.KEY=VALUE, or KEY=VALUE if one of them alone has it,
    which replace those of the preset. ValueError."""
    check_once("--sampler", names)
    named = {}
    for key, value in options.items():
        having = [name for name in names if key in option_names(name)]
        named[f"{having[0]}.{key}" if len(having) == 1 else key] = value
    if len(named) < len(options):
        raise ValueError("--sampler-opt gives an option twice, with the sampler's name and without")
    by_name = options_by_name("--sampler-opt", "sampler", names, named)
    presets = preset_options(names, preset)
    return {
        name: make_sampler(name, presets.get(name, {}) | picked) for name, picked in by_name.items()
    }


def check_guidance(scale: float | None, denoiser: Model, net: Path) -> None:
    """Raise ValueError for guidance of a network without classes."""
    if scale is not None and not denoiser.config.num_classes:
        raise ValueError(f"--cfg {scale} guides by class, but {net} was trained without classes")


def check_conditioning(
    net: Path, denoiser: Model, name: str, sampler: Sampler, ignored: str
) -> None:
    """Raise ValueError if a sampler would make an unconditional network ignore `ignored`."""
    if conditioning_of(denoiser.config) == "unconditional" and not isinstance(sampler, ZeroShot):
        raise ValueError(
            f"{net} is an unconditional denoiser: --sampler {name} would ignore {ignored}, a "
            "zero-shot one such as ddrm would not"
        )


def other_noise(net: Path, denoiser: Model, level: float) -> list[str]:
    """What to know of a network that was trained for other noise on y than of this level."""
    summary, kind = read_summary(net), conditioning_of(denoiser.config)
    if summary.get("poisson_peak") or "noise_level" not in summary or kind == "unconditional":
        return []
    levels = summary.get("noise_range") or [summary["noise_level"]]
    nearest = min(max(level, levels[0]), levels[-1])
    if abs(level - nearest) <= 0.1 * nearest:
        return []
    trained = " to ".join(f"{end:g}" for end in levels)
    return [
        f"{net} was trained with noise of {trained}, y has {level:.2g}: expect less than with a "
        "network that was trained for it"
    ]


def driven(nets: Mapping[Path, Model], samplers: Mapping[str, Sampler]) -> list[tuple[Path, str]]:
    """Which networks each sampler drives, as pairs (network, sampler).

    A zero-shot sampler drives the unconditional networks, or all if there is none. Any other
    drives the networks that know y and were trained for it. Raises ValueError if a sampler would
    ignore y, or if no sampler drives a network.
    """
    unconditional = [n for n, net in nets.items() if conditioning_of(net.config) == "unconditional"]
    others = [net for net in nets if net not in unconditional]
    pairs = []
    for name, sampler in samplers.items():
        zero_shot = isinstance(sampler, ZeroShot)
        first, *more = (unconditional if zero_shot else others) or nets
        check_conditioning(first, nets[first], name, sampler, "y")
        fitting = [n for n in (first, *more) if objective_of(nets[n]) in sampler.objectives]
        if not fitting:
            check_objective(first, nets[first], name, sampler)
        pairs += [(net, name) for net in fitting]
    for idle in [net for net in nets if net not in {pair[0] for pair in pairs}]:
        wanted = "a zero-shot one such as ddrm" if idle in unconditional else "heun or dpm"
        if objective_of(nets[idle]) != "denoising":
            wanted = _fitting(nets[idle])
        raise ValueError(f"no --sampler drives {idle}: add {wanted}, or leave this --net out")
    return pairs


def check_operators(
    samplers: Mapping[str, Sampler], families: Mapping[str, Family], shape: tuple[int, int, int]
) -> None:
    """Raise ValueError if a sampler needs what the operators of a family lack."""
    demanding = [sampler for sampler in samplers.values() if "spectrum" in sampler.needs]
    for family in families.values() if demanding else ():
        for structure in family.structures():
            operator = family.sample(shape, structure, [0])
            for sampler in demanding:
                check_operator(sampler, operator)


def load_frozen(
    path: Path,
    device: torch.device,
    precision: str,
    recompute: bool = False,
    compiled: bool = False,
) -> Model:
    """A network whose weights take no gradients, or a prior: samplers differentiate
    by images alone.

    precision: that of the network's matrix products, to be called under an autocast to it.
    recompute: backward passes repeat the blocks of a network rather than keep their activations.
    compiled: for batches of any size. Raises ValueError for a prior that is to do either, and if
    there is no compiler, and what `load_weights` raises.
    """
    denoiser = load_weights(path, device)
    if not isinstance(denoiser, Denoiser):
        if recompute or compiled:
            option = "--recompute" if recompute else "--compile"
            raise ValueError(f"{option} is for networks, and --net names an analytic prior")
        return denoiser
    denoiser.requires_grad_(False)
    denoiser.cast_linear(DTYPES[precision])
    denoiser.net.recompute = frozenset(range(len(denoiser.config.levels)) if recompute else ())
    if compiled:
        check_compiler(device)
        denoiser.compile(dynamic=None)
    return denoiser


def check_compiler(device: torch.device) -> None:
    """Raise ValueError if PyTorch finds no compiler."""
    from torch._inductor import cpp_builder  # seconds, which only a compiler is worth
    from torch.utils._triton import has_triton

    on_gpu = device.type == "cuda"
    try:
        found = bool(has_triton() if on_gpu else cpp_builder.get_cpp_compiler())
    except RuntimeError:
        found = False
    if not found:
        wanted = "Triton" if on_gpu else "a C++ compiler (g++ or $CXX)"
        raise ValueError(f"--compile needs {wanted}, which is not there: leave it out")


def objective_of(denoiser: Model) -> str:
    """What a network was trained for; a prior denoises."""
    return getattr(denoiser.config, "objective", "denoising")


def check_objective(net: Path, denoiser: Model, name: str, sampler: Sampler) -> None:
    """Raise ValueError if a sampler needs a network that was trained for something else."""
    objective = objective_of(denoiser)
    if objective not in sampler.objectives:
        raise ValueError(
            f"{net} was trained for the objective {objective}: --sampler {name} cannot drive "
            f"it, {_fitting(denoiser)} can"
        )


def _fitting(denoiser: Model) -> str:
    """The samplers that drive a network: zero-shot ones if it is unconditional, else the others."""
    names = sampler_names(objective_of(denoiser))
    if objective_of(denoiser) == "denoising":
        alone = conditioning_of(denoiser.config) == "unconditional"
        names = [name for name in names if isinstance(make_sampler(name), ZeroShot) == alone]
    return " or ".join(names)


def baseline_methods(
    wanted: Sequence[str], options: GenOptions, dataset: ImageDataset
) -> dict[str, Restore]:
    """Those of `BASELINES` that are wanted, by the title they have in tables. ValueError."""
    methods: dict[str, Restore] = {}
    untrained = aseqdip_of(wanted, options.baseline_opt)
    if "pinv" in wanted:
        methods["H†y"] = lambda problem, noise, draws: problem.pinv()
    if "fill" in wanted:
        methods["constant fill"] = lambda problem, noise, draws: constant_fill(problem)
    if "gaussian" in wanted:
        check_values(dataset.image_shape, "the gaussian of --baselines")
        training = get_dataset(options.data, "train", **options.data_opt)
        prior = fit_gaussian(load_images(training, _GAUSSIAN_CROPS))
        methods["Gaussian MMSE"] = lambda problem, noise, draws: posterior_mean(prior, problem)
    return methods | untrained


def aseqdip_of(wanted: Sequence[str], options: Mapping[str, str]) -> dict[str, ASeqDIP]:
    """The untrained method by its title, if it is wanted. ValueError."""
    if "aseqdip" in wanted:
        return {"ASeqDIP": ASeqDIP(**arguments(ASeqDIP, options, "baseline 'aseqdip'"))}
    if options:
        raise ValueError("--baseline-opt sets options of aseqdip: add it to --baselines")
    return {}
