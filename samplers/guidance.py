"""Guidance by class (Ho and Salimans, "Classifier-free diffusion guidance", 2022)."""

import torch
from torch import Tensor

from degradation import Problem
from samplers.base import Denoiser, prepared


class Guided:
    """D_null + scale·(D_class − D_null): a denoiser that exaggerates what the class changes.

    Both evaluations know H and y, D_null not the class. At scale 1 only D_class is evaluated, at 0
    only D_null. For the NFE of the tables, which count a guided evaluation once, a
    `CountingDenoiser` goes around it; inside, one counts the calls of the network.
    """

    def __init__(self, denoiser: Denoiser, scale: float):
        self.denoiser, self.scale = denoiser, scale

    def prepare(self, problem: Problem) -> Problem:
        """What the denoiser inside prepares; it serves both evaluations."""
        return prepared(self.denoiser, problem)

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        """x `[B, C, h, w]`, sigma a number or `[B]`; returns the guided estimate `[B, C, h, w]`.

        Raises ValueError for a problem without class labels.
        """
        if problem.class_labels is None:
            raise ValueError("guidance needs a problem with class labels")
        if self.scale == 1:
            return self.denoiser(x, sigma, problem)
        null = problem.with_classes(torch.full_like(problem.class_labels, -1))
        if self.scale == 0:
            return self.denoiser(x, sigma, null)
        # Side by side in one batch they would need twice the memory and, but for single images,
        # the same time.
        known, unknown = self.denoiser(x, sigma, problem), self.denoiser(x, sigma, null)
        return unknown + self.scale * (known - unknown)
