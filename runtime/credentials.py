"""Credentials: no record that may be handed on keeps them, whatever options they were given in."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

CUT = "(removed)"
_NAME = r"token|passw|secret|credential|api_?key|access_?key|signature|authorization"
_NAMES = re.compile(_NAME, re.IGNORECASE)
_TEXTS = (str, os.PathLike)
_IN_TEXT = {  # what stands in a text, and what is left of it
    r"(?<=://)[^/\s@]+(?=@)": CUT,  # the user and password of a URL
    r"\b(bearer|basic)\s+[\w.~+/=-]{8,}": rf"\1 {CUT}",
    rf"([\w.-]*(?:{_NAME})[\w.-]*[=:]\s*)[^\s&\"',;{{}}]+": rf"\1{CUT}",
    r"\b(?:hf_|ghp_|github_pat_|sk-)[\w-]{16,}": CUT,
}


def plain(value: Any) -> Any:
    """The value in what JSON knows: dicts, lists, strings, finite numbers, bools and null.

    Without credentials: texts that a name such as token belongs to, and parts of any text that look
    like one.
    """
    if hasattr(value, "tolist"):  # tensors and arrays: importing torch takes seconds
        value = value.tolist()
    if isinstance(value, Mapping):
        return {
            str(key): CUT if isinstance(item, _TEXTS) and _NAMES.search(str(key)) else plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not isinstance(value, _TEXTS) and type(value).__module__ != "torch":  # devices, types
        return value
    value = str(value)
    for pattern, left in _IN_TEXT.items():
        value = re.sub(pattern, left, value, flags=re.IGNORECASE)
    return value


def check_whole(options: Mapping[str, Any], source: Any) -> None:
    """Raise ValueError for an option of data whose credential was cut out of a record."""
    for name, value in options.items():
        if CUT in str(value):
            raise ValueError(
                f"{source} does not keep the credential of the data option {name}: give it again, "
                f"--data-opt {name}=..."
            )
