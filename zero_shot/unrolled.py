"""Unrolled DDRM: few steps of DDRM with a network that was fine-tuned through all of them."""

from dataclasses import dataclass

from samplers.base import register
from zero_shot.ddrm import DDRM


@register("unrolled")
@dataclass(frozen=True)
class Unrolled(DDRM):
    """DDRM in 10 steps, for networks trained with the objective `unrolled` (paper, Table 14).

    Before the fine-tuning the same is `DDRM(num_steps=10)`, on the same network.
    """

    title = "Unrolled DDRM"
    objectives = frozenset({"unrolled"})

    num_steps: int = 10
