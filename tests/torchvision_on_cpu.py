"""Lets torchvision be imported beside a torch without CUDA, for tests.

Its wheels bring operators that need CUDA and do not load there, and then its import fails because
it describes operators that nobody has declared. Declared here by name alone they can be described,
though never called, which is enough for packages that import torchvision without using them.
"""

import importlib.util
import re
from pathlib import Path

import torch

_NAMES = re.compile(r'register_(?:meta|fake)\(\s*"(?:torchvision::)?(\w+)"')
_library: torch.library.Library | None = None  # declarations last as long as this object


def declare_operators() -> None:
    """Declare torchvision's operators, once, where torch has no CUDA; nothing without torchvision.

    To be called before torchvision is imported.
    """
    global _library
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None or torch.version.cuda:
        return
    source = Path(spec.origin).with_name("_meta_registrations.py")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(set(_NAMES.findall(source.read_text(encoding="utf-8")))):
        library.define(f"{name}(Tensor input) -> Tensor")
    _library = library
