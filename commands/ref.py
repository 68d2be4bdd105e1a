"""`calculate_metrics.py ref`: statistics of a data set's features, to compare restorations with."""

import time
from dataclasses import asdict

from commands.checks import check_once, checked_count
from commands.options import RefOptions
from datautils import get_dataset
from datautils.identity import identity
from metrics.dataset import dataset_statistics
from metrics.detectors import load_detector, parsed
from metrics.statistics import save_reference
from runtime import distributed
from runtime.errors import one_sentence_errors
from runtime.files import check_output


def write_reference(options: RefOptions) -> None:
    """Compute the statistics on all processes and write them from the first."""
    with distributed.process_group() as device:
        with one_sentence_errors():
            check_output(options.dest, "--dest", ".safetensors")
            check_once("--detector", [parsed(spec)[0] for spec in options.detectors])
            dataset = get_dataset(options.data, options.split, **options.data_opt)
            count, shape = checked_count(options.images, dataset, options.data), dataset.image_shape
            if count < 2:
                raise ValueError(f"a covariance needs at least 2 images, not {count}")
            detectors = [
                load_detector(spec, device, shape, options.trust_detector)
                for spec in options.detectors
            ]
            _ = dataset[0]  # a broken data set shows before the work begins
        start = time.perf_counter()
        statistics = dataset_statistics(
            dataset, detectors, count, options.batch, options.workers, device
        )
        if distributed.rank() == 0:
            provenance = {
                "data": options.data,
                "data_opt": options.data_opt,
                "split": options.split,
                "dataset": asdict(identity(dataset)),
                "image_shape": list(shape),
                "source": getattr(dataset, "description", None),
            }
            entries = {d.name: (statistics[d.name], d) for d in detectors}
            save_reference(options.dest, entries, provenance)
            speed = count / (time.perf_counter() - start)
            print(f"{count} images at {speed:.1f} images/s")
            print(f"reference statistics: {options.dest}")
