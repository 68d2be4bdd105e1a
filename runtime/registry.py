"""Classes by the names that the command line knows, and classes of the user as module.Class."""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from runtime.reader import Reader, arguments, text_of


class Registry(dict[str, Any]):
    """The classes of one kind by name.

    A value is a class, or "module.Class" for one whose import takes long. A name that is not among
    them is read as the module.Class of the user's own.

    kind: what the classes are in a message, such as "sampler"; bases: of one of them a class of the
    user's own has to be a subclass; readers: how text is read for the types of options that are
    not built in; others: what is accepted besides the names.
    """

    def __init__(
        self,
        kind: str,
        *bases: type,
        readers: Mapping[Any, Reader] | None = None,
        others: str = "module.Class of your own",
    ):
        super().__init__()
        self.kind, self.bases, self.readers, self.others = kind, bases, readers, others

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator that gives a class its name."""

        def add(cls: type) -> type:
            self[name] = cls
            return cls

        return add

    def find(self, name: str) -> Any:
        """The class of a name.

        Raises ValueError if there is none, with the names most like it or all of them.
        """
        found = self.get(name, name)
        if isinstance(found, str):
            found, why = _imported(found, self.kind)
            if found is None:
                raise ValueError(f"unknown {self.kind} '{name:.80}'{why}{self._near(name)}")
        if not (isinstance(found, type) and issubclass(found, self.bases or object)):
            bases = " or ".join(base.__name__ for base in self.bases)
            kinds = f"subclass of {bases}" if bases else "class"
            raise ValueError(f"{self.kind} '{name}' is no {kinds}")
        return found

    def build(self, name: str, options: Mapping[str, Any] | None = None, **fixed: Any) -> Any:
        """An object of the named class. Options are text or values; `fixed` are arguments besides.

        Raises ValueError for an unknown name, an unknown or missing option, and a value that is not
        accepted.
        """
        cls = self.find(name)
        what = f"{self.kind} '{name}'"
        return cls(**fixed, **arguments(cls, options or {}, what, fixed, self.readers))

    def _near(self, name: str) -> str:
        by_lower = {known.lower(): known for known in self}
        wanted = name.rpartition(".")[2].lower()
        near = difflib.get_close_matches(wanted, by_lower, n=3, cutoff=0.6)
        if near:
            return f": is it {' or '.join(by_lower[match] for match in near)}?"
        return f"; known are {', '.join(sorted(self))}, and {self.others}"


def _imported(name: str, kind: str) -> tuple[Any, str]:
    """What "module.Class" names; None, and why, if there is no such module or class.

    Raises ValueError if the module is there and cannot be imported.
    """
    module, _, attribute = name.rpartition(".")
    if not module or not all(name.split(".")):
        return None, ""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        # A module that this one imports may be missing; only this one, or a package around it,
        # makes the name unknown.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            hint = "" if "." in missing else " on Python's path; PYTHONPATH adds its folder"
            return None, f" (there is no module {missing}{hint})"
        raise ValueError(f"{kind} '{name}' cannot be imported: {error}") from error
    return getattr(found, attribute, None), f" (module {module} has no {attribute})"


def described(name: str, cls: Any, costs: str = "") -> str:
    """Name and options of a dataclass, and below them what it is, and what it costs.

    An option that must be given stands as mask=..., one that may be left out and has no value then
    in brackets, as [of=...].
    """
    options = " ".join(map(_option, dataclasses.fields(cls)))
    about = " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
    lines = f"{name}  {options}".rstrip(), about, costs
    return "\n    ".join(line for line in lines if line)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field of a dataclass, or MISSING."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _option(option: dataclasses.Field) -> str:
    """An option with its default as the command line takes it, or as the module says it."""
    value = default_of(option)
    if value is dataclasses.MISSING:
        return f"{option.name}=..."
    if value is None:
        return f"[{option.name}=...]"
    values = value if isinstance(value, tuple) else (value,)
    texts = (type(v).__name__ if dataclasses.is_dataclass(v) else text_of(v) for v in values)
    return f"{option.name}={','.join(texts)}"
