"""`python -m degradation`: every family with its options and their defaults."""

from degradation.families import FAMILIES
from runtime.registry import described

if __name__ == "__main__":
    print("\n".join(described(name, family) for name, family in FAMILIES.items()))
