"""The arithmetic of a network, by the names that options have for it."""

import functools
import re
import warnings
from pathlib import Path

import torch

from runtime.reader import PRECISIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = {  # x86 with AVX-512, x86 with AMX, ARM
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision to calculate in: a name of `DTYPES`, which is returned as it is, or "auto".

    "auto" takes bf16 if the device has instructions for it; else fp16 on a GPU and fp32 on a CPU.
    A CPU without such instructions emulates half precision, which is several times slower than
    fp32: asking for it warns. Raises ValueError if the name is unknown.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if cpu_has("bf16") else "fp32"
    if name not in DTYPES:
        raise ValueError(f"precision={name} must be {', '.join(PRECISIONS)}")
    if device.type == "cpu" and name != "fp32" and not cpu_has(name):
        warnings.warn(
            f"this CPU has no {name} arithmetic: {name} is slower here than fp32, which "
            "--precision auto takes",
            stacklevel=2,
        )
    return name


@functools.cache
def cpu_has(name: str) -> bool:
    """Whether Linux lists instructions for "bf16" or "fp16"; other systems list none."""
    if not _CPU_INFO.exists():
        return False
    listed = re.findall(r"^(?:flags|Features)\s*:(.*)", _CPU_INFO.read_text(), re.M)
    return any(_FLAGS[name] & set(flags.split()) for flags in listed)
