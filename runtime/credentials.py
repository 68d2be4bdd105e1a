"""Credentials: no record that may be handed on keeps them, whatever options they were given in."""

import re
from collections.abc import Mapping
from typing import Any

CUT = "(removed)"
_NAME = r"token|passw|secret|credential|api_?key|access_?key|signature|authorization"
_NAMES = re.compile(_NAME, re.IGNORECASE)
_IN_TEXT = {  # what stands in a text, and what is left of it
    r"(?<=://)[^/\s@]+(?=@)": CUT,  # the user and password of a URL
    r"\b(bearer|basic)\s+[\w.~+/=-]{8,}": rf"\1 {CUT}",
    rf"([\w.-]*(?:{_NAME})[\w.-]*[=:]\s*)[^\s&\"',;{{}}]+": rf"\1{CUT}",
    r"\b(?:hf_|ghp_|github_pat_|sk-)[\w-]{16,}": CUT,
}


def cleaned(value: Any) -> Any:
    """The value without credentials: texts that a name such as token belongs to, and parts of any
    text that look like one. Mappings, lists and tuples are gone through."""
    if isinstance(value, Mapping):
        return {
            key: CUT if isinstance(item, str) and _NAMES.search(str(key)) else cleaned(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    if not isinstance(value, str):
        return value
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
