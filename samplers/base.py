"""What a sampler is: `sampler(denoiser, noise, problem, rng) → samples`, built from its options."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Protocol, dataclass_transform

import torch
from torch import Tensor

from degradation import Draws, LinearOperator, Problem, diagonalisable
from runtime.registry import Registry

Denoiser = Callable[[Tensor, Tensor | float, Problem], Tensor]


class RandnLike(Protocol):
    """Source of the noise a sampler draws, such as `degradation.Draws`."""

    def randn_like(self, x: Tensor) -> Tensor: ...


def prepared(denoiser: Denoiser, problem: Problem) -> Problem:
    """The problem with what the denoiser computes of it alone, for a whole sampling run.

    A denoiser may have a method `prepare(problem)`, which fills the problem's field `prepared`.
    """
    prepare = getattr(denoiser, "prepare", None)
    return prepare(problem) if prepare else problem


@dataclasses.dataclass
class Run:
    """One sampling run: what its steps share."""

    denoiser: Denoiser
    problem: Problem
    told: Problem
    """What the denoiser gets: the problem, or its class labels alone in a zero-shot sampler."""
    rng: RandnLike
    index: int = 0
    """Number of the present step."""
    memory: Any = None
    """What a sampler keeps from step to step."""

    def estimate(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The denoiser's E[x0 | x, ...] `[B, C, h, w]` at noise level sigma."""
        return self.denoiser(x, sigma, self.told)


def bounded(default: float | None, low: float | str, high: float | str) -> Any:
    """An option of a sampler between two bounds: numbers, or the names of other options."""
    return dataclasses.field(default=default, metadata={"bounds": (low, high)})


def one_of(*choices: str) -> Any:
    """An option of a sampler that is one of these texts, by default the first."""
    return dataclasses.field(default=choices[0], metadata={"choices": choices})


def _check(sampler: Any, option: dataclasses.Field) -> None:
    """Raise ValueError if an option of a sampler is none of its choices, or outside its bounds."""
    value, choices = getattr(sampler, option.name), option.metadata.get("choices")
    what = f"{type(sampler).__name__} option {option.name}={value}"
    if choices and value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}")
    if "bounds" in option.metadata and value is not None:
        bounds = option.metadata["bounds"]
        low, high = (getattr(sampler, b) if isinstance(b, str) else b for b in bounds)
        if not low <= value <= high:
            raise ValueError(f"{what} must lie between {low} and {high}")


class Sampler:
    """`sampler(denoiser, noise, problem, rng)`; a dataclass of its options.

    needs: what else it asks for: "spectrum", the SVD of the operator (`check_operator` raises
    ValueError for an operator without one), "gradient", a denoiser that can be differentiated.
    objectives: what a network may have been trained for that it drives.
    title: what tables and pictures call the method; without one they say "sample (name)". A
    subclass does not inherit it.
    """

    title: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    objectives: ClassVar[frozenset[str]] = frozenset({"denoising"})

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "title" not in vars(cls):
            cls.title = ""

    def __post_init__(self) -> None:
        """Raise ValueError if an option is none of its choices, or outside its bounds.

        They hold also where a subclass gives the option another default.
        """
        for cls in reversed(type(self).__mro__):
            # The last first, as it may be the bound of another.
            for option in reversed(getattr(cls, "__dataclass_fields__", {}).values()):
                _check(self, option)

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, problem: Problem, rng: RandnLike
    ) -> Tensor:
        """Restored images in [-1, 1], `[B, C, h, w]`, one for each problem.

        noise: standard normal `[B, C, h, w]`, where the run starts. Raises ValueError if the
        operator or the denoiser lacks what the sampler needs.
        """
        return self.sample(self.begin(denoiser, problem, rng), noise)

    def sample(self, run: Run, noise: Tensor) -> Tensor:
        """The images of a run from its noise, both `[B, C, h, w]`: what a subclass writes."""
        raise NotImplementedError

    def evaluations(self) -> int | None:
        """Evaluations (NFE) that an image takes, at most; None if nobody wrote it down."""
        return None

    def begin(self, denoiser: Denoiser, problem: Problem, rng: RandnLike) -> Run:
        """A new run."""
        check_operator(self, problem.degradation)
        return Run(denoiser, problem, prepared(denoiser, self.tell(problem)), rng)

    def tell(self, problem: Problem) -> Problem:
        """The part of the problem that the denoiser gets."""
        return problem


class CountingDenoiser:
    """Counts the calls of a denoiser, or with `images`, the number of images, evaluations.

    calls: their number, for any batch; with `images` the NFE of the tables, in which
    a call with several particles of each image is as many evaluations, and one of a part of the
    images a share of one. backward_passes: vector-Jacobian products through them.
    """

    def __init__(self, denoiser: Denoiser, images: int | None = None):
        self.denoiser, self.images = denoiser, images
        self.calls: float = 0
        self.backward_passes: float = 0

    def prepare(self, problem: Problem) -> Problem:
        """What the denoiser inside prepares."""
        return prepared(self.denoiser, problem)

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        estimate = self.denoiser(x, sigma, problem)
        count = 1 if self.images is None else whole(len(x) / self.images)
        self.calls = whole(self.calls + count)
        if estimate.requires_grad:
            estimate.register_hook(lambda gradient: self._count_backward(count))
        return estimate

    def _count_backward(self, count: float) -> None:
        self.backward_passes += count


def whole(count: float) -> float:
    """An int where it is one up to rounding."""
    return round(count) if abs(count - round(count)) < 1e-9 else count


def evaluations_of(sampler: Sampler, image_shape: tuple[int, int, int]) -> int:
    """Evaluations (NFE) that a sampler takes for an image, as it says or as many as it takes with a
    trivial denoiser."""
    if (told := sampler.evaluations()) is not None:
        return told
    problem = Problem.without_measurement(1, image_shape)
    counter = CountingDenoiser(lambda x, sigma, problem: x, 1)
    draws = Draws([0])
    with torch.no_grad():
        sampler(counter, draws.normal(image_shape, "latent"), problem, draws)
    return int(counter.calls)


@dataclasses.dataclass(frozen=True)
class OnGrid(Sampler):
    """A sampler that goes down the noise levels of EDM: a subclass writes `step`, and `evaluations`
    if a step takes another number than one."""

    num_steps: int = bounded(32, 2, 10**6)
    sigma_min: float = bounded(0.002, 1e-9, "sigma_max")
    sigma_max: float = bounded(80.0, 1e-9, 1e6)
    rho: float = bounded(7.0, 0.1, 100)

    def evaluations(self) -> int:
        return self.num_steps

    def sample(self, run: Run, noise: Tensor) -> Tensor:
        grid = self.grid()
        return self.descend(run, self.start(run, noise, grid[0]), grid)

    def descend(self, run: Run, x: Tensor, grid: Sequence[float]) -> Tensor:
        """The image at the last of these levels from x at the first."""
        for run.index, (sigma, following) in enumerate(pairwise(grid)):
            x = self.step(run, x, sigma, following)
        return x

    def grid(self) -> list[float]:
        """Noise levels from sigma_max to sigma_min, then 0: num_steps + 1 numbers (EDM, Eq. 5)."""
        ramp = torch.linspace(0, 1, self.num_steps, dtype=torch.float64)
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return [*((high + ramp * (low - high)) ** self.rho).tolist(), 0.0]

    def start(self, run: Run, noise: Tensor, sigma: float) -> Tensor:
        """The image x at the first level, from unit noise; both `[B, C, h, w]`."""
        return noise * sigma

    def step(self, run: Run, x: Tensor, sigma: float, following: float) -> Tensor:
        """x moved from level `sigma` to the next one, which is 0 in the last step."""
        raise NotImplementedError


SAMPLERS = Registry("sampler", Sampler)


@dataclass_transform(frozen_default=True)
def register(name: str) -> Callable[[type], type]:
    """Class decorator that makes a class a frozen dataclass, if it is none, and gives it a name."""

    def add(cls: type) -> type:
        if "__dataclass_fields__" not in vars(cls):
            cls = dataclasses.dataclass(frozen=True)(cls)
        return SAMPLERS.register(name)(cls)

    return add


def sampler_names(objective: str | None = None) -> list[str]:
    """The names that `make_sampler` knows; objective: only of those that drive such networks."""
    names = sorted(SAMPLERS)
    return [n for n in names if objective is None or objective in SAMPLERS.find(n).objectives]


def make_sampler(name: str, options: Mapping[str, Any] | None = None) -> Sampler:
    """A sampler from its name, or module.Class, and options as text or values: {"num_steps": "16"}.

    Raises ValueError for a wrong name or option, with the known ones.
    """
    found = SAMPLERS.find(name)
    unfinished = found.__call__ is Sampler.__call__ and (
        found.sample is Sampler.sample
        or (found.sample is OnGrid.sample and found.step is OnGrid.step)
    )
    if unfinished or not dataclasses.is_dataclass(found):
        raise ValueError(f"sampler '{name}' must be a dataclass with a step, sample or __call__")
    return SAMPLERS.build(name, options)


def option_names(name: str) -> set[str]:
    """The options of a sampler, by its name. Raises ValueError for an unknown one."""
    found = SAMPLERS.find(name)
    return {f.name for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()


def check_operator(sampler: Sampler, operator: LinearOperator) -> None:
    """Raise ValueError if a sampler needs the SVD of an operator that has none."""
    if "spectrum" in sampler.needs:
        advice = ": take a sampler without such a need, as dps or daps"
        diagonalisable(operator, f"sampler {type(sampler).__name__}", advice)
