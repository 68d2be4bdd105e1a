"""Curves of runs: held-out PSNR of each family, and the loss, over the images seen.

`python -m training.curves RUN [RUN...] --dest FILE.png` draws several runs side by side.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from runtime.cli import SETTINGS, Command
from runtime.errors import one_sentence_errors
from runtime.files import check_output, replacing
from training.log import read_log

_STYLES = ("-", "--", ":", "-.")


def draw_curves(folders: Sequence[Path], path: Path) -> Path:
    """Draw the logs of runs into one picture; a run has a line style, a family a colour.
    Runs go by the names of their folders, or by their paths if two have the same name.

    Raises ValueError if a folder has no log.
    """
    import matplotlib.pyplot as plt  # slow to import

    folders = list(dict.fromkeys(folders))
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    logs = {name: read_log(folder) for name, folder in zip(names, folders, strict=True)}
    families = list(dict.fromkeys(name for log in logs.values() for name in _families(log)))
    count = 3 if families else 1  # without a degradation there is the loss alone
    size = (4.3 * count, 4)
    figure, (axes,) = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    for i, (run, log) in enumerate(logs.items()):
        prefix = f"{run}: " if len(logs) > 1 else ""
        style = {"linestyle": _STYLES[i % len(_STYLES)]}
        losses = _points(log, "loss")
        marker = "." if len(losses[0]) < 3 else ""  # a line would show nothing of one
        axes[-1].plot(*losses, **style, color=f"C{i}", linewidth=1, marker=marker, label=run)
        for name in _families(log):
            images, values = _points(log, "heldout_psnr", name)
            marked = style | {
                "marker": "o", "markersize": 3, "color": f"C{families.index(name)}",
                "label": prefix + name,
            }  # fmt: skip
            axes[0].plot(images, values, **marked)
            axes[1].plot(images, [value - values[0] for value in values], **marked)
    axes[-1].set(ylabel="loss, which may be negative", title="Training loss")
    if families:
        axes[0].set(ylabel="PSNR (dB)", title="Held-out PSNR of the MMSE estimate")
        axes[1].set(ylabel="change (dB)", title="The same, since the start")
        axes[0].legend(fontsize="small")
    if len(logs) > 1:
        axes[-1].legend(fontsize="small")
    for each in axes:
        each.set_xlabel("training images (thousands)")
        each.grid(alpha=0.3)
        each.locator_params(axis="x", nbins=6)
        each.ticklabel_format(useOffset=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    return path


def _families(log: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in log for name in line.get("heldout_psnr") or {}))


def _points(log: Iterable[dict[str, Any]], *keys: str) -> tuple[list[float], list[float]]:
    """Thousands of images, and the value at a path of keys, of the lines that have one."""
    images, values = [], []
    for line in log:
        value: Any = line
        for key in keys:
            value = (value or {}).get(key)
        if value is not None:
            images.append(line["images"] / 1000)
            values.append(value)
    return images, values


@click.command(cls=Command, context_settings=SETTINGS | {"show_default": True})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--dest", type=click.Path(dir_okay=False, path_type=Path), default=Path("curves.png"),
    help="Picture to write, as PNG.",
)  # fmt: skip
def main(runs: tuple[Path, ...], dest: Path) -> None:
    """Draw the curves of one or several runs, given by their folders."""
    with one_sentence_errors():
        check_output(dest, "--dest", ".png")
        draw_curves(runs, dest)
    click.echo(f"curves: {dest}")


if __name__ == "__main__":
    main()
