"""Restore a photo: `python restore.py --image photo.png --degradation Box --outdir FOLDER`."""

import click

from commands.options import RestoreOptions
from runtime.cli import SETTINGS, Command, takes


@click.command(cls=Command, context_settings=SETTINGS)
@takes(RestoreOptions)
def main(options: RestoreOptions) -> None:
    """Restore a photo: samples, the MMSE estimate, and how much the samples differ.

    Without --measured the photo is degraded by --degradation, --mask or --kernel, and compared
    with what is restored.
    """
    from networks.cpu import tune

    tune()
    from commands.restore_photo import restore  # importing torch takes seconds: not for --help

    restore(options)


if __name__ == "__main__":
    main()
