"""The paper's tables and figures: `python reproduce.py table1`, or under `torchrun`."""

import click

from commands.options import ReproduceOptions
from runtime.cli import SETTINGS, Command, takes


@click.command(cls=Command, context_settings=SETTINGS)
@click.argument("what")
@takes(ReproduceOptions)
def main(options: ReproduceOptions) -> None:
    """Measure what is missing of a table or figure, and write it beside the published figures.

    WHAT is a name such as table1 or figure3; all: every one; list: what there is and what is
    missing. Every method on every family is measured once and kept, so several jobs can make the
    rows of a table in one folder, and what was made stays made.
    """
    from networks.cpu import tune

    tune()
    from commands.draw import draw  # importing torch takes seconds: not for --help
    from commands.gen import evaluate
    from commands.reproduce import reproduce

    reproduce(options, lambda cell: evaluate(cell) if cell.degradations else draw(cell))


if __name__ == "__main__":
    main()
