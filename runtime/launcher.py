"""What torchrun, or another launcher, says of this process in the environment."""

import os
from dataclasses import dataclass

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


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
    env = {name: int(os.environ[name]) for name in _NUMBERS if os.environ.get(name)}
    local_world, local_rank = env.get("LOCAL_WORLD_SIZE", 1), env.get("LOCAL_RANK", 0)
    return Place(env["RANK"], env["WORLD_SIZE"], local_rank, local_world)


def first_here() -> bool:
    """Whether this process speaks for those of its machine; where nobody knows, each does."""
    try:
        return place().local_rank == 0
    except ValueError:
        return True
