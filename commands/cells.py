"""A cell of a table: one method on one family of operators, measured by `gen` and kept."""

import contextlib
import hashlib
import importlib.util
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from commands.methods import preset_options, samplers_of
from commands.options import GenOptions
from commands.table_files import Block, Figure, Made, Row, Setting, Table, setting_of
from datautils import get_dataset
from datautils.identity import identity
from metrics.detectors import DISTANCES
from metrics.perceptual import PERCEPTUAL
from runtime.errors import DataError
from runtime.files import is_claimed, sha256_of
from runtime.reader import texts


@dataclass(frozen=True)
class Cell:
    """An evaluation, and why it cannot be made yet."""

    name: str
    options: GenOptions
    needs: tuple[Made, ...]  # networks and references
    missing: tuple[str, ...] = ()  # commands or sentences that say how to get what is missing

    @property
    def done(self) -> bool:
        """Whether it is measured."""
        return (self.options.outdir / "metrics.json").exists()

    @property
    def open(self) -> bool:
        """Whether it can be measured, and no other job does so."""
        return not (self.missing or self.done or is_claimed(self.options.outdir))

    def run(self, gen: Callable[[GenOptions], Any]) -> None:
        """Make it; what `gen` prints is left out."""
        with contextlib.redirect_stdout(io.StringIO()):
            gen(self.options)

    def values(self) -> dict[str, Any]:
        """{metric: {"mean": ...}, "evaluations": ...} of the one method and family."""
        text = (self.options.outdir / "metrics.json").read_text(encoding="utf-8")
        families = json.loads(text)["metrics"]["values"]
        return next(iter(next(iter(families.values())).values()))


Cells = dict[tuple[int, str], Cell]  # by row and block


def _not_installed(metrics: Sequence[str]) -> list[str]:
    """How to get the packages of metrics that are not installed."""
    packages = {metric: PERCEPTUAL[metric].package for metric in metrics if metric in PERCEPTUAL}
    return [
        f"{metric}: pip install --no-deps {package.replace('_', '-')}"
        for metric, package in packages.items()
        if importlib.util.find_spec(package) is None
    ]


def cells_of(table: Table, rows: Sequence[int], results: Path) -> Cells:
    """The cells of these rows, those that the settings have networks for."""
    return {
        (i, key): _table_cell(key, block, table.rows[i], results)
        for i in rows
        for key, block in table.blocks.items()
        if table.rows[i].network in ("", *setting_of(block.setting).networks)
    }


def _table_cell(key: str, block: Block, row: Row, results: Path) -> Cell:
    """The cell of a row in a block, of which this is the key."""
    setting = setting_of(block.setting)
    picked = _defaults(setting, row.sampler)
    chosen = texts(picked | _preset(row.sampler, row.presets.get(key)) | row.options)
    options: dict[str, Any] = {
        "metrics": ",".join(_measured(setting, block)),
        "degradations": (block.family,) if block.family else (),
        "noise_level": block.noise_level,
        "poisson_peak": block.poisson_peak,
        "pictures": 4,
    }
    if row.network:
        options |= {"samplers": (row.sampler,), "sampler_opt": chosen}
    else:
        options |= {"baselines": row.sampler, "baseline_opt": chosen}
    name = f"{row.method} on {block.family or 'nothing'}, {setting.title}"
    slug = f"{row.network}-{row.sampler}-{block.family or 'unconditional'}"
    return _cell(name, slug, block.setting, [row.network] * bool(row.network), options, results)


def _measured(setting: Setting, block: Block) -> list[str]:
    """What `gen` measures for the cells of a block, the same for all tables."""
    names = list(setting.metrics.values())
    if block.family is None:
        return [name for name in names if name in ("fid", "fd")]
    noisy = block.noise_level or block.poisson_peak
    return [name for name in names if not (noisy and name in ("cfid", "cfd"))]


def figure_cell(figure: Figure, results: Path) -> Cell:
    """The evaluation that draws a figure."""
    setting = setting_of(figure.setting)
    options = {
        "samplers": tuple(figure.samplers),
        "sampler_opt": {
            f"{name}.{key}": value
            for name in figure.samplers
            for key, value in texts(_defaults(setting, name)).items()
        },
        "degradations": tuple(figure.families),
        "metrics": "psnr" if figure.families else "",
        "images": figure.images,
        "pictures": figure.images,
    }
    networks = [name for name in figure.networks if name in setting.networks]
    return _cell(figure.title, "figure", figure.setting, networks, options, results)


def _defaults(setting: Setting, sampler: str) -> dict[str, Any]:
    """The options of a sampler or baseline in a setting."""
    return _preset(sampler, setting.presets.get(sampler)) | setting.samplers.get(sampler, {})


def _preset(sampler: str, preset: str | None) -> dict[str, Any]:
    return preset_options([sampler], preset).get(sampler, {})


def _cell(
    name: str, slug: str, place: str, networks: Sequence[str], options: dict[str, Any],
    results: Path,
) -> Cell:  # fmt: skip
    """An evaluation of networks of the setting `place`, which gives what `options` leave open."""
    setting = setting_of(place)
    nets = [setting.networks[network] for network in networks]
    given: dict[str, Any] = {
        "nets": tuple(net.path for net in nets), "images": setting.images, "batch": setting.batch,
    }  # fmt: skip
    if nets and options["samplers"] != ("mmse",):  # a guided estimate would be no E[x | y]
        given["cfg"] = setting.cfg
    if options["degradations"]:
        given |= {"data": setting.data, "data_opt": texts(setting.data_opt), "baselines": ""}
    metrics = options["metrics"].split(",")
    needed = list(nets)
    if setting.ref and DISTANCES.keys() & metrics:
        given |= {"ref": setting.ref.path, "any_count": setting.any_count}
        needed.append(setting.ref)
    chosen = given | options
    missing = [f"{n.file}: {n.made_by}" for n in needed if not n.path.exists()]
    missing += _not_installed(metrics)
    images = ""
    if not missing and options["degradations"]:
        images, missing = _images(setting.data, tuple(given["data_opt"].items()))
    digest = "" if missing else _digest(chosen, needed, images)
    slug = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")
    folder = results / "cells" / place / f"{slug}-{digest[:12]}"
    return Cell(name, GenOptions(outdir=folder, **chosen), tuple(needed), tuple(missing))


_contents = cache(sha256_of)


@cache
def _images(data: str, data_opt: tuple[tuple[str, str], ...]) -> tuple[str, list[str]]:
    """The digest of a data set's held-out images, and why it cannot be read, if so."""
    try:
        return identity(get_dataset(data, "heldout", **dict(data_opt))).digest, []
    except (DataError, ValueError) as error:
        return "", [str(error)]


def _digest(options: dict[str, Any], files: list[Made], images: str) -> str:
    """Of what the values follow from: options, those of samplers that are not given too, the
    names and labels of the images, and the contents of weights and reference."""
    asked = {k: str(v) for k, v in options.items() if k not in ("nets", "ref", "batch")}
    asked["files"] = str([_contents(file.path) for file in files])
    if options.get("samplers"):
        asked["sampler_opt"] = str(samplers_of(options["samplers"], options["sampler_opt"]))
    asked["data"] = images
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
