"""`python -m degradation`: every family with its options and their defaults."""

import signal

from degradation.families import FAMILIES
from runtime.registry import described

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # of `head`
    print("\n".join(described(name, family) for name, family in FAMILIES.items()))
