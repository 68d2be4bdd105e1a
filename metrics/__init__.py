"""How good restorations are: pixel metrics, distances between distributions, and their records."""
