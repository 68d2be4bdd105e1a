"""`python -m degradation`: every family with its options and their defaults."""

from degradation.families import FAMILIES
from runtime.output import unbroken_output
from runtime.registry import described

if __name__ == "__main__":
    with unbroken_output():
        print("\n".join(described(name, family) for name, family in FAMILIES.items()))
