"""Errors of the user end a command with one sentence and exit code 2. A traceback is a bug."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.launcher import first_here

KILLED_LOADER = (
    "a process that loads images was killed, perhaps for lack of memory (or of shared memory, "
    "/dev/shm): take fewer --workers"
)
TOO_LARGE = (
    "memory does not suffice: take fewer or smaller images at once (--batch, --samples, --images, "
    "--size, resolution), or fewer --workers; in training a smaller --batch-gpu leaves the batch "
    "as it is, and --recompute 0,1 keeps fewer activations"
)
# torch has no kind of error of its own for what is too large: for the memory of a CPU, for a number
# of bytes in 64 bits, for a size in 64 bits. A process that loads sends others by their names.
_NO_MEMORY = (
    *("allocate memory", "Storage size calculation overflowed", "Overflow when unpacking"),
    *("MemoryError", "std::bad_alloc", "can't start new thread"),
)


class DataError(ValueError):
    """A fault of a data file. The message names the file and the archive it is in."""


class DivergedError(Exception):
    """Training has diverged."""


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with exit code 2 and one sentence if the block raises ValueError or OSError,
    or if memory does not suffice.

    For blocks that build things from the user's input. Within a process group every process has to
    enter it: all of them end if one fails, and the first process prints the first sentence.
    """
    error = None
    try:
        yield
    except Exception as caught:
        sentence = str(caught) if isinstance(caught, ValueError) else _sentence(caught)
        if sentence is None:
            raise
        error = " ".join(sentence.split()) or type(caught).__name__
    # Importing torch takes seconds, and without this module there is no process group.
    distributed = sys.modules.get("runtime.distributed")
    told = [text for text in distributed.gather(error) if text] if distributed else [error]
    if told and told[0] is not None:
        if first_here() and not (distributed and distributed.rank()):
            print(f"error: {told[0]}", file=sys.stderr, flush=True)
        sys.exit(2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, as Python, numpy and torch say it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | TypeError) and any(w in str(error) for w in _NO_MEMORY)


@contextmanager
def data_errors() -> Iterator[None]:
    """End this process with exit code 2 and one sentence if data cannot be read or written,
    training has diverged, or memory does not suffice.

    Under torchrun the others then end too: unlike `one_sentence_errors` it does not wait.
    """
    try:
        yield
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if distributed := sys.modules.get("runtime.distributed"):  # which imports torch
            distributed.claim_failure()
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
        sys.exit(2)


def is_killed_loader(error: BaseException) -> bool:
    """Whether torch raised this because a process that loads was killed, which it does wherever the
    main thread happens to be; an error of such a process begins otherwise."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _sentence(error: Exception) -> str | None:
    """What is said of an error that is no mistake of ours; None for one that is, and for a reader
    of our output that is gone, as `head` is, which click takes care of."""
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"  # without the number that Python puts first
    if isinstance(error, DataError | OSError | DivergedError):
        return str(error)
    if is_killed_loader(error):
        return KILLED_LOADER
    return TOO_LARGE if is_out_of_memory(error) else None
