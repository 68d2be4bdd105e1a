"""What torchrun, or another launcher, says of this process in the environment."""

import os
from dataclasses import dataclass

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together, and those of its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def launched() -> bool:
    """Whether this process is one of several that torchrun, or another launcher, has started."""
    return "WORLD_SIZE" in os.environ


def place() -> Place:
    """Where this process stands; without a launcher it is alone, whatever LOCAL_RANK says.

    Raises ValueError for an environment that no launcher makes.
    """
    if not launched():
        return Place()
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is set, as torchrun does it, but {missing[0]} is not: start with "
            "torchrun, or unset WORLD_SIZE"
        )
    world = _number("WORLD_SIZE", 1)
    _number("MASTER_PORT", 0, 65535)
    local_world = _number("LOCAL_WORLD_SIZE", 1, world) if "LOCAL_WORLD_SIZE" in os.environ else 1
    local = _number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else 0
    return Place(_number("RANK", 0, world - 1), world, local, local_world)


def first_here() -> bool:
    """Whether this process speaks for those of its machine; where nobody knows, each does."""
    try:
        return place().local_rank == 0
    except ValueError:
        return True


def _number(name: str, least: int, most: int | None = None) -> int:
    text = os.environ[name]
    if text.isdecimal() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    accepted = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    raise ValueError(f"{name}='{text}' must be {accepted}, as torchrun sets it")
