"""Curves of a run: held-out PSNR of each family, and the loss, over the images seen."""

from pathlib import Path

from training.log import read_log

_LABELS = {
    "MotionBlur": "strided motion blur",
    "MissingPatches": "patch in-painting",
    "MatrixDegradation": "matrix",
}


def draw_curves(folder: Path) -> Path:
    """Draw `curves.png` from `log.jsonl` of a run. Raises ValueError where there is no log."""
    import matplotlib.pyplot as plt  # slow to import
    from matplotlib.figure import Figure

    lines = read_log(folder)
    heldout = [line for line in lines if "heldout_psnr" in line]
    losses = [line for line in lines if "loss" in line]
    figure: Figure
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    images = [line["images"] / 1000 for line in heldout]
    for name in heldout[0]["heldout_psnr"] if heldout else ():
        values = [line["heldout_psnr"][name] for line in heldout]
        style = {"marker": "o", "markersize": 3, "label": _LABELS.get(name, name)}
        left.plot(images, values, **style)
        middle.plot(images, [value - values[0] for value in values], **style)
    left.set(ylabel="PSNR (dB)", title="Held-out PSNR of the MMSE estimate")
    middle.set(ylabel="change (dB)", title="The same, since the start")
    if heldout:
        left.legend()
    right.plot([line["images"] / 1000 for line in losses], [line["loss"] for line in losses])
    right.set(ylabel="loss", title="Training loss")
    for axes in (left, middle, right):
        axes.set_xlabel("training images (thousands)")
        axes.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
