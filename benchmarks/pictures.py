"""Pictures of the benchmarks: quality against cost, marginals beside the exact ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from networks import GaussianMixture

_COLUMNS = 6
_EXTENT = 21.0  # of the plane: the means reach 16
_INK, _DOT, _GRID = "#1b2a41", "#d1495b", "#d8dee9"
_HEAT = LinearSegmentedColormap.from_list("paper", ["#ffffff", "#c9d8ea", "#6f9ac8", "#1b4f8a"])


def family_axes(families: Sequence[str], labels: Iterable[str], size: tuple[float, float]) -> Any:
    """A figure (inches) and its axes: a titled column for each family, a row for each value."""
    labels = list(labels)
    figure, axes = plt.subplots(
        len(labels), len(families), figsize=size, sharex="row", sharey="row", squeeze=False
    )
    for axis, family in zip(axes[0], families, strict=True):
        axis.set_title(family, fontsize=10, loc="left", color=_INK)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    return figure, axes


def draw_curves(
    axis: Any, curves: Mapping[str, Sequence[tuple[float, float]]], dashed: Sequence[str] = ()
) -> None:
    """A curve through points (x, y) for each label."""
    for i, (label, points) in enumerate(curves.items()):
        line = "--" if label in dashed else ("-", "--", ":", "-.")[i // 10]
        style = {"color": plt.get_cmap("tab10")(i % 10), "ls": line}
        axis.plot(*zip(*points, strict=True), marker="o", ms=3.5, lw=1.6, label=label, **style)
    axis.grid(True, color=_GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def draw_marginals(
    exact: GaussianMixture, points: Mapping[str, Tensor], distances: Mapping[str, float]
) -> Any:
    """The first two coordinates of samples `[n, 2]` by title, over the density of a posterior (a
    batch of one); beside the title their sliced distance."""
    rows = -(-len(points) // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(2.05 * _COLUMNS, 2.3 * rows))
    axis = torch.linspace(-_EXTENT, _EXTENT, 241, dtype=torch.float64)
    parts = MultivariateNormal(exact.means[0, :, :2], exact.covariances[0, :, :2, :2])
    plane = MixtureSameFamily(Categorical(logits=exact.log_weights[0]), parts)
    density = plane.log_prob(torch.cartesian_prod(axis, axis)).exp().view(241, 241).mT
    shade = (density / density.amax()).sqrt()  # faint modes show
    box = (-_EXTENT, _EXTENT, -_EXTENT, _EXTENT)
    for cell in axes.flat[len(points) :]:
        cell.axis("off")
    for cell, (title, x) in zip(axes.flat, points.items(), strict=False):
        cell.imshow(shade, extent=box, origin="lower", cmap=_HEAT)
        inside = x[(x.abs() < _EXTENT).all(1)]
        cell.scatter(inside[:, 0], inside[:, 1], s=2.2, color=_DOT, alpha=0.45, linewidths=0)
        cell.contour(axis, axis, shade, [0.15, 0.6], colors=_INK, linewidths=0.5, alpha=0.7)
        cell.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[])
        for spine in cell.spines.values():
            spine.set_color(_GRID)
        cell.set_title(title, fontsize=9, loc="left", color=_INK, pad=3)
        cell.set_title(f"{distances[title]:.2f}", fontsize=9, loc="right", color=_DOT, pad=3)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, wspace=0.08, hspace=0.2)
    return figure


def draw_evaluations(curves: Mapping[str, Sequence[Mapping[str, Any]]], floor: str) -> Any:
    """Distance against evaluations, by title: oracles, which know y, and zero-shot samplers."""
    oracles = [name for name in curves if name.endswith("(oracle)")]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), sharey=True, width_ratios=(3, 4))
    panels = {
        "told y: the exact conditional denoiser": oracles,
        "zero-shot: the denoiser of the prior": [n for n in curves if n not in (*oracles, floor)],
    }
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        ends = {name: curves[name][-1]["sliced_wasserstein"] for name in names}
        draw_curves(axis, {  # the legend has them as they end, from top to bottom
            name: [(point["evaluations"], point["sliced_wasserstein"]) for point in curves[name]]
            for name in sorted(names, key=lambda name: -ends[name])
        })  # fmt: skip
        axis.axhline(curves[floor][0]["sliced_wasserstein"], color=_INK, lw=1, ls="--", label=floor)
        axis.set(xscale="log", yscale="log", xlabel="evaluations of the denoiser")
        axis.set_title(title, fontsize=10, loc="left", color=_INK)
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes[0].set_ylabel("sliced Wasserstein distance to the posterior")
    figure.tight_layout()
    return figure
