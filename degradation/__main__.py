"""`python -m degradation`: every family with its options and their defaults.

An option that must be given stands as mask=..., one that may be left out and has no value then in
brackets, as [of=...].
"""

import dataclasses

from degradation.families import FAMILIES
from degradation.family import Family


def described(family: type[Family]) -> str:
    """Name and options of a family, and below them what it is."""
    options = " ".join(_option(field) for field in dataclasses.fields(family))
    about = (family.__doc__ or "").partition("\n\n")[0]
    return f"{family.__name__}  {options}".rstrip() + f"\n    {' '.join(about.split())}"


def _option(option: dataclasses.Field) -> str:
    """An option with its default as the command line takes it, or as the module says it."""
    value = option.default
    if option.default_factory is not dataclasses.MISSING:
        value = option.default_factory()
    if value is dataclasses.MISSING:
        return f"{option.name}=..."
    if value is None:
        return f"[{option.name}=...]"
    values = value if isinstance(value, tuple) else (value,)
    texts = (type(v).__name__ if isinstance(v, Family) else str(v) for v in values)
    return f"{option.name}={','.join(texts)}"


if __name__ == "__main__":
    print("\n".join(described(family) for family in FAMILIES.values()))
