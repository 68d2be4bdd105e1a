"""Any other physics: objects with A and A_adjoint, such as those of deepinv, as operators."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from degradation.base import per_image
from degradation.family import Device, Family, Shape
from degradation.iterative import Iterative
from degradation.randomness import Draws

_POWER_STEPS = 32  # of the iteration for ‖H‖: a few per cent are enough for a floor
_ADJOINT = 1e-3  # largest relative error of ‖Ax‖² = ⟨x, AᵀAx⟩
_PENROSE = 1e-3  # largest relative error of an A_dagger that is called exact
_ROUNDING = 8  # times the precision of the numbers: a row of H this small is rounding


@runtime_checkable
class Physics(Protocol):
    """A linear map of images `[n, C, h, w]` to measurements `[n, ...]`, real or complex.

    Every image is measured alike. `A_dagger(y)` is used where it is said to be exact. An object
    that holds tensors has to be a `torch.nn.Module` to be moved to another device.
    """

    def A(self, x: Tensor) -> Tensor: ...

    def A_adjoint(self, y: Tensor) -> Tensor: ...


class FromPhysics(Iterative):
    """The operator of one physics that `batch` images share, or of a list of B, one for each.

    Complex measurements become real ones with a last axis of 2; `measurement_shape` is the form of
    y as a picture, by default what A returns. Rows of H that are zero do not exist (`rows`): they
    are found by measuring two images of random numbers, up to rounding. tol, max_iter and floor are
    those of conjugate gradients (`Iterative`). exact_dagger: `A_dagger` is the pseudo-inverse, and
    replaces them at noise level 0; it has to be differentiable if gradients are wanted.

    Raises ValueError if an object has no A or A_adjoint, A_adjoint is not the adjoint of A,
    A_dagger not the pseudo-inverse it is said to be, the measurements do not fit together, or a
    module holds numbers of 16 bits.
    """

    tensors = ("index", "norm", "exists")

    def __init__(
        self,
        physics: Physics | Sequence[Physics],
        image_shape: Shape,
        batch: int = 1,
        measurement_shape: Sequence[int] | None = None,
        tol: float = 1e-6,
        max_iter: int = 500,
        floor: float = 1e-3,
        exact_dagger: bool = False,
    ):
        members = tuple(physics) if isinstance(physics, Sequence) else (physics,)
        if not members or batch < 1 or (len(members) > 1 and batch not in (1, len(members))):
            raise ValueError(
                f"{len(members)} physics for {batch} images: give one for all, or one for each"
            )
        for member in members:
            if not isinstance(member, Physics):
                raise ValueError(
                    f"a physics has the methods A and A_adjoint, {type(member).__name__} has not"
                )
        self.image_shape = image_shape
        self.tol, self.max_iter, self.floor = tol, max_iter, floor
        self.exact_dagger = exact_dagger
        self.physics = members
        homes = [_home(member) for member in members]
        device, dtype = homes[0]
        self.members = tuple(range(len(members)))
        self.index = torch.arange(len(members), device=device)
        self._probe(dtype)
        self.measurement_shape = self._pictured(measurement_shape)
        self._check_adjoint()
        self.norm = self._largest()
        if exact_dagger:
            self._check_dagger()
        if len(members) == 1 and batch > 1:
            for name in self.tensors:
                value = getattr(self, name)
                setattr(self, name, value.expand(batch, *value.shape[1:]))

    # ---- the contract -------------------------------------------------------------------------

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        if not self.exact_dagger:
            return super().H_pinv(y, noise_level)
        exact = torch.as_tensor(noise_level, device=self.norm.device) == 0
        if not exact.any():
            return super().H_pinv(y, noise_level)
        x = self.unflatten(self._on_stacks(lambda v: self._dagger(v).flatten(-3), y))
        if exact.all():
            return x
        return torch.where(per_image(exact.view(-1, 1, 1, 1), x), x, super().H_pinv(y, noise_level))

    @property
    def rows(self) -> Tensor:
        return self.exists

    def measurement_image(self, y: Tensor) -> Tensor | None:
        """y in its own form if that is a real picture of the image's channels, or a grey one."""
        shape = self.measurement_shape
        if self.complex or len(shape) != 3 or shape[0] not in (1, self.image_shape[0]):
            return None
        return y.unflatten(-1, shape)

    def to(self, *args, **kwargs) -> Self:
        """Move or cast, the physics too: a copy of it if anything changes."""
        other = super().to(*args, **kwargs)
        if (other.norm.device, other.norm.dtype) != (self.norm.device, self.norm.dtype):
            device, dtype = other.norm.device, other.norm.dtype
            other.physics = tuple(_moved(member, device, dtype) for member in self.physics)
        return other

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        other = super()._map(fn)
        if len(self.physics) > 1:
            other.members = tuple(other.index.tolist())  # once: a device is waited for
        return other

    # ---- calls of the physics -----------------------------------------------------------------

    def _measure(self, x: Tensor) -> Tensor:
        return self._each("A", x, self._real)

    def _spread(self, y: Tensor) -> Tensor:
        return self._each("A_adjoint", self._native(y), _real_part)

    def _dagger(self, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            return self._each("A_dagger", self._native(y), _real_part)

    def _each(self, name: str, v: Tensor, convert: Any) -> Tensor:
        """A map of the physics of each operator, of stacks `[B, K, ...]`; all at once if shared."""
        if len(self.physics) == 1:
            out = convert(getattr(self.physics[0], name)(v.flatten(0, 1)))
            return out.unflatten(0, v.shape[:2])
        members = [self.physics[i] for i in self.members]
        parts = [getattr(m, name)(part) for m, part in zip(members, v, strict=True)]
        return torch.stack([convert(part) for part in parts])

    def _real(self, y: Tensor) -> Tensor:
        """What A returns, `[n, ...]`, as real vectors `[n, M]`."""
        if y.is_complex() != self.complex or y.shape[1:] != self.native_shape:
            raise ValueError(
                f"a physics measured {tuple(y.shape[1:])}, another {tuple(self.native_shape)}: "
                "the measurements of a batch must have one form"
            )
        return (torch.view_as_real(y.resolve_conj()) if self.complex else y).flatten(1)

    def _native(self, y: Tensor) -> Tensor:
        """Vectors `[B, K, M]` in the form that A_adjoint takes."""
        if not self.complex:
            return y.unflatten(-1, self.native_shape)
        return torch.view_as_complex(y.unflatten(-1, (*self.native_shape, 2)).contiguous())

    # ---- what is found out once ---------------------------------------------------------------

    def _random_image(self, dtype: torch.dtype, stream: str) -> Tensor:
        draws = Draws([0] * len(self.physics), self.index.device)
        return draws.normal(self.image_shape, f"physics/{stream}").to(dtype)[:, None]

    @torch.no_grad()
    def _probe(self, dtype: torch.dtype) -> None:
        """The form of a measurement, and its rows that random images leave at zero."""
        x = torch.cat([self._random_image(dtype, name) for name in ("probe", "probe/2")], 1)
        y = self.physics[0].A(x[0, :1])
        if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != 1:
            raise ValueError(
                "A must map images [n, C, h, w] to one tensor of measurements [n, ...], not to "
                f"{tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__} for one image"
            )
        self.complex, self.native_shape = y.is_complex(), y.shape[1:]
        seen = self._measure(x)
        scale = seen.square().mean((1, 2)).sqrt()[:, None]
        self.exists = seen.abs().amax(1) > _ROUNDING * torch.finfo(seen.dtype).eps * scale
        self.norm = torch.ones(len(self.physics), device=y.device, dtype=dtype)

    def _pictured(self, shape: Sequence[int] | None) -> tuple[int, ...]:
        if shape is not None and math.prod(shape) != self.native_shape.numel():
            raise ValueError(
                f"measurement_shape {tuple(shape)} does not fit measurements of the form "
                f"{tuple(self.native_shape)}"
            )
        return tuple(self.native_shape if shape is None else shape)

    @torch.no_grad()
    def _largest(self) -> Tensor:
        """‖H‖ `[P]` of each physics, by power iteration on HᵀH."""
        x = self._random_image(self.norm.dtype, "power").flatten(2)
        system, size = self._system(), torch.ones_like(x[..., :1])
        for _ in range(_POWER_STEPS):
            x = system.adjoint(system.forward(x))
            size = x.norm(dim=-1, keepdim=True)
            x = x / size.clamp(min=torch.finfo(x.dtype).tiny)
        return size[:, 0, 0].sqrt()

    @torch.no_grad()
    def _check_adjoint(self) -> None:
        """‖Ax‖² = ⟨x, AᵀAx⟩ and ‖Aᵀy‖² = ⟨y, AAᵀy⟩ for each physics. Independent x and y would not
        tell: ⟨Ax, y⟩ is small beside ‖Ax‖‖y‖, the more so the larger the image."""
        x = self._random_image(self.norm.dtype, "adjoint").flatten(2)
        there, back = (system := self._system()).forward, system.adjoint
        y = self._random_like(there(x), 1, "adjoint")
        for v, first, second in ((x, there, back), (y, back, there)):
            image = first(v)
            energy = image.square().sum(-1)
            wrong = ~((energy - (v * second(image)).sum(-1)).abs() <= _ADJOINT * energy)
            if wrong.any():
                raise ValueError(
                    f"A_adjoint of {self._named(wrong)} is not the adjoint of its A: "
                    "conjugate gradients need the exact one"
                )

    @torch.no_grad()
    def _check_dagger(self) -> None:
        """The Penrose identities on random vectors, for each physics: AA†A = A and A†AA† = A†, and
        that the projections P = A†A and AA† are orthogonal, ⟨Pv, v − Pv⟩ = 0."""
        x = self._random_image(self.norm.dtype, "dagger").flatten(2)
        measure = self._system().forward

        def dagger(y: Tensor) -> Tensor:
            return self._dagger(y).flatten(-3)

        y = measure(x)
        z = self._random_like(y, 2, "dagger")
        back = dagger(z)
        seen, found = dagger(y), measure(back)
        identities = (
            ((measure(seen) - y).norm(dim=-1), y.norm(dim=-1)),
            ((dagger(found) - back).norm(dim=-1), back.norm(dim=-1)),
            ((seen * (x - seen)).sum(-1).abs(), seen.square().sum(-1)),
            ((found * (z - found)).sum(-1).abs(), found.square().sum(-1)),
        )
        for error, scale in identities:
            wrong = ~(error <= _PENROSE * scale)
            if wrong.any():
                raise ValueError(
                    f"A_dagger of {self._named(wrong)} is not the pseudo-inverse of its A: "
                    "leave out exact_dagger, and conjugate gradients take its place"
                )

    def _random_like(self, y: Tensor, seed: int, stream: str) -> Tensor:
        """Random measurements, the same ones for each physics."""
        return Draws([seed], y.device).normal(y.shape[2:], f"physics/{stream}").to(y).expand_as(y)

    def _named(self, wrong: Tensor) -> str:
        """The first physics that is wrong, `[P, 1]`."""
        number = int(wrong[:, 0].byte().argmax())
        name = type(self.physics[number]).__name__
        return name if len(self.physics) == 1 else f"{name} (physics {number} of the list)"


@dataclass(frozen=True, eq=False)
class PhysicsFamily(Family):
    """Always one physics, or one of a list, drawn uniformly from the seed of each image.

    options: of `FromPhysics`, such as {"floor": 0.02}.
    """

    physics: Physics | Sequence[Physics]
    options: dict[str, Any] = field(default_factory=dict)
    _made: dict[tuple[Shape, str], FromPhysics] = field(
        default_factory=dict, init=False, repr=False
    )

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> FromPhysics:
        key = image_shape, str(device)
        if key not in self._made:
            operator = FromPhysics(self.physics, image_shape, **self.options)
            self._made[key] = operator.to(device)
        operator = self._made[key]
        if len(operator) == 1:
            return operator.expand(len(seeds))
        drawn = Draws(seeds).integers(0, len(operator) - 1, (), "physics")
        return operator[drawn.to(operator.index.device)]


def _home(physics: Physics) -> tuple[torch.device, torch.dtype]:
    """Device and type of a module's numbers; the CPU and float32 for anything else. ValueError for
    numbers of 16 bits."""
    device, dtype = torch.device("cpu"), torch.float32
    if isinstance(physics, torch.nn.Module):
        for tensor in (*physics.parameters(), *physics.buffers()):
            device = tensor.device
            if tensor.dtype in (torch.float16, torch.bfloat16, torch.complex32):
                raise ValueError(
                    f"{type(physics).__name__} holds {tensor.dtype} numbers, too short for "
                    "conjugate gradients: give it in float32, as by its .float()"
                )
            if tensor.dtype in (torch.float64, torch.complex128):
                dtype = torch.float64
    return device, dtype


def _moved(physics: Physics, device: torch.device, dtype: torch.dtype) -> Physics:
    """A copy of a module with its numbers elsewhere; anything else as it is."""
    if not isinstance(physics, torch.nn.Module):
        return physics

    def move(t: Tensor) -> Tensor:
        if t.is_complex():
            return t.to(device, dtype.to_complex())
        return t.to(device, dtype) if t.is_floating_point() else t.to(device)

    moved: Any = copy.deepcopy(physics)._apply(move)
    return moved


def _real_part(x: Tensor) -> Tensor:
    """Images of a physics that computes in complex numbers: ⟨Ax, y⟩ is the real inner product."""
    return x.real if x.is_complex() else x
