"""Any other physics, objects with A and A_adjoint, as operators; and our operators as physics of
deepinv (https://deepinv.github.io), for its samplers and losses."""

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from degradation.base import Device, LinearOperator, Shape
from degradation.family import Family
from degradation.iterative import Iterative
from degradation.randomness import Draws
from degradation.solve import Linear

_POWER_STEPS = 32  # of the iteration for ‖H‖: a few per cent are enough for a floor
_IDENTITY = 1e-3  # largest relative error of what A_adjoint must fulfil
_ROUNDING = 8  # times the precision of the numbers: a row of H this small is rounding


@runtime_checkable
class Physics(Protocol):
    """A linear map of images `[n, C, h, w]` to measurements `[n, ...]`, real or complex.

    Every image is measured alike. An object that holds tensors has to be a `torch.nn.Module` to
    be moved to another device.
    """

    def A(self, x: Tensor) -> Tensor: ...

    def A_adjoint(self, y: Tensor) -> Tensor: ...


class FromPhysics(Iterative):
    """The operator of one physics that `batch` images share, or of a list of B, one for each.

    Complex measurements become real ones with a last axis of 2. Rows of H that leave two images of
    random numbers at zero, up to rounding, do not exist. tol, max_iter and floor are those of
    `Iterative`.

    Raises ValueError if an object has no A or A_adjoint, A_adjoint is not the adjoint of A, the
    measurements do not fit together, or a module holds numbers of 16 bits.
    """

    tensors = ("index", "norm", "exists")

    def __init__(
        self,
        physics: Physics | Sequence[Physics],
        image_shape: Shape,
        batch: int = 1,
        tol: float = 1e-6,
        max_iter: int = 500,
        floor: float = 1e-3,
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
        self.image_shape, self.physics = image_shape, members
        self.tol, self.max_iter, self.floor = tol, max_iter, floor
        (device, dtype), *_ = [_home(member) for member in members]  # each is checked
        self.members = tuple(range(len(members)))
        self.index = torch.arange(len(members), device=device)
        self._probe(dtype)
        self._check_adjoint()
        self.norm = self._largest()
        if len(members) == 1:
            for name in self.tensors:
                value = getattr(self, name)
                setattr(self, name, value.expand(batch, *value.shape[1:]))

    # ---- the contract -------------------------------------------------------------------------

    @property
    def rows(self) -> Tensor:
        return self.exists

    def measurement_image(self, y: Tensor) -> Tensor | None:
        """y in its own form if that is a real picture of the image's channels, or a grey one."""
        shape = self.native_shape
        if self.complex or len(shape) != 3 or shape[0] not in (1, self.image_shape[0]):
            return None
        return y.unflatten(-1, shape)

    def to(self, *args, **kwargs) -> Self:
        """Move or cast, the physics too: a copy of it if anything changes."""
        other = super().to(*args, **kwargs)
        device, dtype = other.norm.device, other.norm.dtype
        if (device, dtype) != (self.norm.device, self.norm.dtype):
            other.physics = tuple(_moved(member, device, dtype) for member in self.physics)
        return other

    def _map(self, fn: Linear) -> Self:
        other = super()._map(fn)
        if len(self.physics) > 1:
            other.members = tuple(other.index.tolist())  # once: a device is waited for
        return other

    # ---- calls of the physics -----------------------------------------------------------------

    def _measure(self, x: Tensor) -> Tensor:
        return self._each("A", x, self._real)

    def _spread(self, y: Tensor) -> Tensor:
        return self._each("A_adjoint", self._native(y), torch.real)  # ⟨Ax, y⟩ is real

    def _each(self, name: str, v: Tensor, convert: Linear) -> Tensor:
        """A map of the physics of each operator, of stacks `[B, K, ...]`; all at once if shared."""
        maps = [getattr(member, name) for member in self.physics]
        if len(maps) == 1:
            return convert(maps[0](v.flatten(0, 1))).unflatten(0, v.shape[:2])
        parts = zip(self.members, v, strict=True)
        return torch.stack([convert(maps[i](part)) for i, part in parts])

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

    @torch.no_grad()
    def _largest(self) -> Tensor:
        """‖H‖ `[P]` of each physics, by power iteration on HᵀH."""
        x = self._random_image(self.norm.dtype, "power").flatten(2)
        there, back, *_ = self._system()
        for _ in range(_POWER_STEPS):
            x = back(there(x))
            size = x.norm(dim=-1, keepdim=True)
            x = x / size.clamp(min=torch.finfo(x.dtype).tiny)
        return size[:, 0, 0].sqrt()

    @torch.no_grad()
    def _check_adjoint(self) -> None:
        """‖Ax‖² = ⟨x, AᵀAx⟩ and ‖Aᵀy‖² = ⟨y, AAᵀy⟩ for each physics. ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ would not
        tell: of random x and y both are small beside ‖Ax‖‖y‖."""
        x = self._random_image(self.norm.dtype, "adjoint").flatten(2)
        there, back, *_ = self._system()
        y = there(x)
        y = Draws([1], y.device).normal(y.shape[2:], "physics/adjoint").to(y).expand_as(y)
        for v, first, second in ((x, there, back), (y, back, there)):
            image = first(v)
            energy = image.square().sum(-1)
            right = (energy - (v * second(image)).sum(-1)).abs() <= _IDENTITY * energy
            if not right.all():
                number = int(right[:, 0].byte().argmin())
                place = f" (physics {number} of the list)" if len(self.physics) > 1 else ""
                raise ValueError(
                    f"A_adjoint of {type(self.physics[number]).__name__}{place} is not the adjoint "
                    "of its A: conjugate gradients need the exact one"
                )


@dataclass(frozen=True, eq=False)
class PhysicsFamily(Family):
    """Always one physics, or one of a list, drawn uniformly from the seed of each image.

    options: of `FromPhysics`, such as {"floor": 0.02}.
    """

    physics: Physics | Sequence[Physics]
    options: dict[str, Any] = field(default_factory=dict)
    _made: dict[Any, FromPhysics] = field(default_factory=dict, init=False, repr=False)

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> FromPhysics:
        key = image_shape, str(device)
        if key not in self._made:
            self._made[key] = FromPhysics(self.physics, image_shape, **self.options).to(device)
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
        return t.to(device, dtype if t.is_floating_point() else t.dtype)

    moved: Any = copy.deepcopy(physics)._apply(move)
    return moved


def to_deepinv(operator: LinearOperator) -> Any:
    """A `deepinv.physics.LinearPhysics` with A, A_adjoint and A_dagger of an operator.

    A maps as many images as there are operators, or a whole multiple (block after block),
    `[n, C, h, w]`, to `[n, C', h', w']` where the measurement is a picture, else to `[n, M]`.
    A_dagger is H† at noise level 0. Raises ImportError if deepinv is not installed.
    """
    return _physics_class()(operator)


@cache
def _physics_class() -> type:
    """Made where it is needed: deepinv takes a second to import, and is optional."""
    try:
        base: Any = importlib.import_module("deepinv.physics").LinearPhysics
    except (ImportError, RuntimeError) as error:  # what a torchvision for another torch raises
        raise ImportError(
            "to_deepinv needs the package deepinv (pip install 'deepinv>=0.5') and a torchvision "
            f"that fits this torch; importing it said: {error}"
        ) from error

    class OperatorPhysics(base):
        """A x = Hx with H of InvFusion."""

        def __init__(self, operator: LinearOperator):
            self.operator = operator  # first: the constructor below moves the module
            super().__init__(img_size=operator.image_shape, device=operator.rows.device)

        def A(self, x: Tensor, **kwargs: Any) -> Tensor:
            operator = self._of(len(x))
            y = operator.H(x)
            picture = operator.measurement_image(y)
            return y if picture is None else picture

        def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
            return self._of(len(y)).H_adjoint(y.flatten(1))

        def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
            return self._of(len(y)).H_pinv(y.flatten(1))

        def _of(self, n: int) -> LinearOperator:
            times, rest = divmod(n, len(self.operator))
            if rest or not times:
                raise ValueError(f"{n} images for {len(self.operator)} operators")
            return self.operator if times == 1 else self.operator.expand(times)

        def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
            """`.to(...)` of a module moves the operator as well."""
            super()._apply(fn, *args, **kwargs)
            self.operator = self.operator.to(self._device_holder.device)
            return self

    return OperatorPhysics
