"""`python -m samplers`: every sampler with its options, costs and needs.

NFE: evaluations of the denoiser for an image, by default. docs/samplers.md says more.
"""

import signal

from runtime.registry import described
from samplers.base import SAMPLERS, make_sampler
from zero_shot import ZeroShot

_NEEDS = {"spectrum": "the SVD of H", "gradient": "the gradient of the denoiser"}


def costs(name: str) -> str:
    """What an image takes by default, and what a sampler asks of the network and of H."""
    sampler = make_sampler(name)
    needs = ["a network that knows images alone"] if isinstance(sampler, ZeroShot) else []
    needs += [_NEEDS[need] for need in sorted(sampler.needs)]
    return f"NFE {sampler.evaluations()}" + f"; needs {', '.join(needs)}" * bool(needs)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # of `head`
    print("\n".join(described(name, cls, costs(name)) for name, cls in SAMPLERS.items()))
