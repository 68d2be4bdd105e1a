"""A method of your own beside those of the project: `evaluate(method, outdir)`.

It restores the held-out emoji that ship, under each family, and is measured as `gen` measures. The
networks of samplers are the weights that ship.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.weights import FAMILIES, NETS
from commands import gen
from commands.methods import BASELINES
from commands.options import GenOptions
from degradation import Draws, Problem, to_deepinv
from samplers import make_sampler
from zero_shot import ZeroShot


class Row(NamedTuple):
    """A mean over `count` images with its 95 % interval, which distances of sets lack."""

    method: str
    family: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    count: int
    nfe: float
    """Evaluations of the network for an image."""
    seconds: float
    """For an image."""


@dataclass
class Method:
    """A function or module as a method that `gen` can measure.

    It is called by what its second parameter is named: `f(y, physics)` with a physics of deepinv,
    images in [0, 1] as they are there, and y as a picture where it is one; `f(y, problem)` with the
    `Problem`; `f(y, operator)`, or any other name, with the `LinearOperator`. The latter two are of
    images in [-1, 1] and of y `[B, M]`.
    """

    function: Callable[..., Tensor]
    cost: Mapping[str, float] = field(default_factory=dict)
    """Of an image, by the name it has in result files."""

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        called = getattr(self.function, "forward", self.function)  # a module's own call hides it
        second = [*inspect.signature(called).parameters, "", ""][1]
        if second == "physics":
            x = self._in_deepinv(problem)
        else:
            x = self.function(problem.y, problem if second == "problem" else problem.degradation)
        if x.shape != noise.shape:
            raise ValueError(f"images must be {tuple(noise.shape)}, not {tuple(x.shape)}")
        return x.to(noise)

    def _in_deepinv(self, problem: Problem) -> Tensor:
        """(y + H1) / 2 is what H measures of the same images in [0, 1], with half the noise."""
        operator, level = problem.degradation, problem.levels / 2
        white = operator.H(torch.ones(len(problem), *operator.image_shape).to(problem.y))
        y = (problem.y + white) / 2
        picture = operator.measurement_image(y)
        physics = to_deepinv(operator)
        # Denoisers of deepinv read it off the physics, where there is no noise too.
        physics.noise_model = importlib.import_module("deepinv.physics").GaussianNoise(level)
        return 2 * self.function(y if picture is None else picture, physics) - 1


def evaluate(
    method: str | Callable[..., Tensor],
    outdir: str | Path,
    *,
    name: str | None = None,
    nfe: float = 0,
    beside: Sequence[str] = (),
    **options: Any,
) -> list[Row]:
    """Measure a method, print the table, and write the files of `gen` with `report.html`.

    method: a sampler by name, or what `Method` takes: a function, a Reconstructor of deepinv;
    outdir: a new folder; name: in tables, by default that of the function or class; nfe: of a
    function, which nobody can count; beside: baselines (pinv, fill, aseqdip) and samplers to
    measure as well; options: others of `gen`, such as images=64, metrics="psnr" or
    noise_level=0.05. Returns a row for each method, family and metric. Ends the program with one
    sentence for wrong options, as `gen` does.
    """
    own = {}
    samplers = [other for other in beside if other not in BASELINES]
    if isinstance(method, str):
        samplers.insert(0, method)
    else:
        title = name or getattr(method, "__name__", type(method).__name__)
        own[title] = Method(method, {"evaluations": nfe})
    zero_shot = {isinstance(make_sampler(sampler), ZeroShot) for sampler in samplers}
    chosen = {
        "data": "Emoji", "data_opt": {"resolution": "32"}, "degradations": FAMILIES,
        "baselines": ",".join(other for other in beside if other in BASELINES),
        "samplers": tuple(samplers),
        "nets": tuple(NETS[-1] if kind else NETS[0] for kind in sorted(zero_shot)),
    }  # fmt: skip
    values = gen.evaluate(GenOptions(outdir=Path(outdir), **chosen | options), own)
    return [
        Row(title, family, metric, value["mean"], value.get("low"), value.get("high"),
            value["count"], cell["evaluations"], cell["seconds_per_image"])
        for family, methods in values.items()
        for title, cell in methods.items()
        for metric, value in cell.items()
        if isinstance(value, dict) and "count" in value
    ]  # fmt: skip
