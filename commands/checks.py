"""What the commands check of their options."""

from collections.abc import Iterable, Mapping, Sequence

from datautils import ImageDataset


def options_by_name(
    option: str, kind: str, names: Sequence[str], options: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The options of each name, from KEY=VALUE of the only one or NAME.KEY=VALUE. ValueError.

    option: what they are given by, such as --sampler-opt; kind: of what, such as sampler.
    """
    by_name: dict[str, dict[str, str]] = {name: {} for name in names}
    only = names[0] if len(by_name) == 1 else None
    for key, value in options.items():
        named = [name for name in by_name if key.startswith(f"{name}.")]
        name = max(named, key=len, default=only)
        if name is None:
            inner = key.rpartition(".")[2]
            known = ", ".join(f"{known}.{inner}" for known in by_name)
            raise ValueError(f"{option} {key} must name the {kind}: {known}")
        if (inner := key.removeprefix(f"{name}.")) in by_name[name]:
            raise ValueError(f"{option} {name}.{inner} is given twice: give it once")
        by_name[name][inner] = value
    return by_name


def check_once(option: str, names: Sequence[str]) -> None:
    """Raise ValueError for a name that is given twice: its results would have one name too."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{option} {name} is given twice: give every one once")


def chosen(kind: str, text: str, known: Iterable[str]) -> list[str]:
    """The names of a comma-separated list, each once. Raises ValueError with the known ones."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'; known are {', '.join(known)}")
    return names


def checked_count(images: int | None, dataset: ImageDataset, name: str) -> int:
    """Images to take of a data set, by default all. Raises ValueError if it has fewer."""
    if images is not None and images > len(dataset):
        raise ValueError(f"--images {images}: {name} has only {len(dataset)}")
    return images or len(dataset)
