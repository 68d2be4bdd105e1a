"""What a run was begun with: a run that goes on with anything else would be another one."""

from dataclasses import dataclass
from typing import Any

from datautils.identity import Identity

_WAY_OUT = "set it back, or let the run go on as it is now with --accept-changes"


@dataclass(frozen=True)
class Origin:
    """The settings that stay the same in a run, and its training images."""

    settings: dict[str, Any]
    """`TrainConfig.fixed`."""
    data: Identity


def check_origin(before: Origin, now: Origin) -> None:
    """Raise ValueError if a run goes on with other settings or images than it was begun with.

    Settings that only one of them has are of another version, and are passed over.
    """
    changes = [
        f"{name} is {now.settings[name]!r} in config.yaml, and was {value!r} in training"
        for name, value in before.settings.items()
        if name in now.settings and now.settings[name] != value
    ]
    if changes:
        raise ValueError(f"{'; '.join(changes)}: {_WAY_OUT}")
    if before.data != now.data:
        raise ValueError(
            f"the data set has {now.data}, and the run was trained on {before.data}: {_WAY_OUT}"
        )
