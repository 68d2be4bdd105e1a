"""The InvFusion network: HDiT whose attention blocks apply the degradation to their own features.

Paper, sections 3 and A.2; with no Feature Degradation Layer it is plain HDiT.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from degradation import Diagonalisable, Problem
from degradation.base import full_precision
from networks import layers
from networks.attention import Attention, backend_in_use, make_attention
from networks.dropout import Dropout
from networks.features import FeatureMap, feature_map, mix
from runtime.reader import OBJECTIVES

AUGMENT_DIM = 9  # numbers that describe a non-leaking augmentation (EDM, appendix F.2)
_MOST_LEVELS = 16  # each has half the side of the one before
_LEAST_LEVEL = 1e-3  # noise of y below this (an eighth of a grey level) counts as none

Grid = tuple[Attention, tuple[Tensor, Tensor]]
"""Attention among the tokens of a block, and the cos and sin `[h, w, n_heads, d_head / 4]` of their
rotations."""


@dataclass(frozen=True)
class LevelConfig:
    """One resolution of the network; `kernel` None means global attention."""

    depth: int
    width: int
    kernel: int | None = None
    d_head: int = 64
    d_ff: int | None = None  # 3·width
    joint: bool = True  # with a Feature Degradation Layer in every block
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(self, "depth", "width", "d_head", "kernel", "d_ff")
        if self.width % self.d_head:
            raise ValueError(f"d_head {self.d_head} must divide the width {self.width}")
        _require(0 <= self.dropout < 1, self, "dropout", "at least 0 and less than 1")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the architecture (paper, Table 5)."""

    image_shape: tuple[int, int, int]
    patch: int
    levels: tuple[LevelConfig, ...]
    in_mult: int = 2  # 2: H†y stands beside the noisy image; 1: unconditional
    out_mult: int = 1  # 1 + number of principal components
    num_classes: int = 0
    mapping_width: int = 256
    mapping_depth: int = 2
    mapping_d_ff: int | None = None  # 3·width
    noise_conditioning: bool = False  # the noise level of y is an input
    objective: str = "denoising"  # what it is trained for (training/loss.py)
    fused: bool = False  # sees x and y in one image, and has y in its output (EPS)
    sigma_data: float = 0.5  # standard deviation of pixels
    logvar_channels: int = 128  # random features of u(σ)

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= _MOST_LEVELS:
            raise ValueError(f"a network has 1 to {_MOST_LEVELS} levels, not {len(self.levels)}")
        _require(min(self.image_shape) >= 1, self, "image_shape", "three positive numbers")
        _require_positive(
            self, "patch", "out_mult", "mapping_width", "mapping_depth", "mapping_d_ff",
            "logvar_channels",
        )  # fmt: skip
        _require(self.objective in OBJECTIVES, self, "objective", " or ".join(OBJECTIVES))
        sound = self.objective != "nppc" or self.out_mult >= 2
        _require(sound, self, "out_mult", "at least 2 for the objective nppc")
        if self.fused and self.objective == "indi":
            raise ValueError("a fused network has noise levels, and indi has times: leave out one")
        if self.fused and self.objective == "unrolled":
            raise ValueError("a fused network sees y, and an unrolled one does not: leave out one")
        _require(self.in_mult in (1, 2), self, "in_mult", "1 or 2")
        _require(self.num_classes >= 0, self, "num_classes", "a whole number of at least 0")
        _require(1e-4 <= self.sigma_data <= 1e4, self, "sigma_data", "a number from 1e-4 to 1e4")
        _require(self.mapping_width % 2 == 0, self, "mapping_width", "even")
        channels, h, w = self.image_shape
        cell = self.patch * 2 ** (len(self.levels) - 1)
        if h % cell or w % cell:
            raise ValueError(f"image sides {h}×{w} must be multiples of {cell} for this network")
        for i, level in enumerate(self.levels):
            pixels = channels * (self.patch * 2**i) ** 2
            if level.joint and level.width % pixels:
                raise ValueError(
                    f"level {i}: width {level.width} is no multiple of {pixels} values of a patch, "
                    "so its features are no stack of images; set joint to false there"
                )


def _require(sound: bool, config: LevelConfig | NetworkConfig, name: str, accepted: str) -> None:
    if not sound:
        raise ValueError(f"{name} {getattr(config, name)} must be {accepted}")


def _require_positive(config: LevelConfig | NetworkConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= 1, config, name, "a whole number of at least 1")


class FeatureDegradation(nn.Module):
    """Feature Degradation Layer: H†·T([y, Ha]) on features seen as a stack of K images (Eq. 5).

    T mixes [y, Ha] along K, as two products: no copy of both is made.
    """

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        stack = width // (patch * patch * channels)
        self.deg_linear = nn.Linear(stack + 1, stack)

    def forward(self, x: Tensor, features: FeatureMap) -> Tensor:
        """Tokens `[B, h, w, d]` to tokens."""
        measured = features.H(x)  # [..., K, n]
        mixed = mix(measured, features.y, self.deg_linear.weight, self.deg_linear.bias)
        return features.H_pinv(F.gelu(mixed)).to(x.dtype)


class SelfAttention(nn.Module):
    """Cosine-similarity attention with axial RoPE; joint with a second stream y when it has one.

    The joint stream adds keys from [x̄, ȳ] and values from ȳ under one softmax (A.2.2).
    """

    def __init__(self, config: LevelConfig, cond_width: int):
        super().__init__()
        width = config.width
        self.d_head, self.n_heads = config.d_head, width // config.d_head
        self.norm = layers.AdaRMSNorm(width, cond_width)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.full((self.n_heads,), 10.0))
        self.pos_emb = layers.AxialRoPE(self.d_head, self.n_heads)
        self.dropout = Dropout(config.dropout)
        self.out_proj = layers.zero_init(nn.Linear(width, width, bias=False))
        if config.joint:
            self.jnorm = layers.AdaRMSNorm(width, cond_width)
            self.jk_proj = nn.Linear(2 * width, width, bias=False)
            self.jv_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, grid: Grid, cond: Tensor, y: Tensor | None = None) -> Tensor:
        """x, y `[B, h, w, d]`, cond `[B, cond_width]`."""
        skip, (attention, rope) = x, grid
        x = self.norm(x, cond)
        q, k, v = self.qkv_proj(x).chunk(3, -1)
        streams = [(self._direction(k, rope), self._heads(v))]
        if y is not None:
            y = self.jnorm(y, cond)
            from_x, from_y = self.jk_proj.weight.chunk(2, -1)
            jk = F.linear(x, from_x) + F.linear(y, from_y)
            streams.append((self._direction(jk, rope), self._heads(self.jv_proj(y))))
        out = attention(self._direction(q, rope), streams)
        return skip + self.out_proj(self.dropout(out.flatten(-2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def _direction(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Heads of length √scale, rotated by position: their products are scale · cosine."""
        x = full_precision(self._heads(x))  # a logit of scale 10 deserves more than three digits
        length = torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
        return layers.rotate(x * (length * self.scale.sqrt()[:, None]), *rope)


class Block(nn.Module):
    """InvFusion block: Feature Degradation Layer, joint attention, feed-forward (Fig. 2)."""

    def __init__(self, config: LevelConfig, patch: int, channels: int, cond_width: int):
        super().__init__()
        width = config.width
        if config.joint:
            self.feature_degradation = FeatureDegradation(width, patch, channels)
        self.self_attn = SelfAttention(config, cond_width)
        norm, dropout = layers.AdaRMSNorm(width, cond_width), Dropout(config.dropout)
        self.ff = layers.FeedForward(norm, width, config.d_ff or 3 * width, dropout)

    def forward(self, x: Tensor, grid: Grid, cond: Tensor, features: FeatureMap | None) -> Tensor:
        """features: the operator on the tokens of this level, None where the block is plain."""
        y = None if features is None else self.feature_degradation(x, features)
        return self.ff(self.self_attn(x, grid, cond, y), cond)


class InvFusion(nn.Module):
    """The raw network F(x, c_noise; H, y): `[B, C·in_mult, h, w]` to `[B, C·out_mult, h, w]`."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        channels, width, levels = config.image_shape[0], config.mapping_width, config.levels
        self.patch_in = layers.TokenMerge(channels * config.in_mult, levels[0].width, config.patch)
        self.time_emb = layers.FourierFeatures(1, width)
        self.time_in_proj = nn.Linear(width, width, bias=False)
        self.aug_emb = layers.FourierFeatures(AUGMENT_DIM, width)
        self.aug_in_proj = nn.Linear(width, width, bias=False)
        if config.noise_conditioning:
            self.noise_emb = layers.FourierFeatures(1, width)
            self.noise_in_proj = nn.Linear(width, width, bias=False)
        if config.num_classes:
            self.class_emb = nn.Embedding(config.num_classes + 1, width)  # the last is "no class"
        d_ff = config.mapping_d_ff or 3 * width
        self.mapping = layers.mapping_network(config.mapping_depth, width, d_ff)

        def blocks(i: int) -> nn.ModuleList:
            patch = config.patch * 2**i
            depth = range(levels[i].depth)
            return nn.ModuleList(Block(levels[i], patch, channels, width) for _ in depth)

        outer = range(len(levels) - 1)
        pairs = [(levels[i].width, levels[i + 1].width) for i in outer]
        self.down_levels = nn.ModuleList(blocks(i) for i in outer)
        self.up_levels = nn.ModuleList(blocks(i) for i in outer)
        self.mid_level = blocks(len(levels) - 1)
        self.merges = nn.ModuleList(layers.TokenMerge(fine, coarse, 2) for fine, coarse in pairs)
        self.splits = nn.ModuleList(layers.TokenSplit(coarse, fine, 2) for fine, coarse in pairs)
        self.out_norm = layers.RMSNorm(levels[0].width)
        outputs = channels * config.out_mult
        self.patch_out = layers.TokenSplit(levels[0].width, outputs, config.patch, skip=False)
        layers.zero_init(self.patch_out.proj)
        # Levels, 0 the finest, whose blocks keep no activations for the backward pass.
        self.recompute: frozenset[int] = frozenset()
        # `transform` as `Denoiser.compile` made it. It holds no network, so copies share it.
        self.compiled: Callable[..., Tensor] | None = None
        self._grids: dict[tuple, list[list[Grid]]] = {}
        self.register_load_state_dict_post_hook(_forget_grids)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        problem: Problem,
        augment_labels: Tensor | None = None,
        features: Sequence[FeatureMap | None] | None = None,
    ) -> Tensor:
        """c_noise `[B]` is ln(σ)/4; augment_labels `[B, 9]`, zero when omitted; features: those of
        the problem, if they are computed already."""
        features = self.features(problem) if features is None else features
        # Iterations end when they have converged. A compiler cannot know their number.
        compiled = self.compiled if isinstance(problem.degradation, Diagonalisable) else None
        level = problem.levels.float() if self.config.noise_conditioning else None
        conditions = c_noise, problem.class_labels, augment_labels, level
        transform = compiled or InvFusion.transform
        return transform(self, x, features, self._places(x.device), *conditions)

    def features(self, problem: Problem) -> list[FeatureMap | None]:
        """The operator on the tokens of each level, None for a level without such layers."""
        given = problem.degradation, problem.y, problem.levels
        with torch.autocast(problem.y.device.type, enabled=False):
            return [
                feature_map(*given, self.config.patch * 2**i) if level.joint else None
                for i, level in enumerate(self.config.levels)
            ]

    def transform(
        self,
        x: Tensor,
        features: Sequence[FeatureMap | None],
        grids: Sequence[Sequence[Grid]],
        *conditions: Any,
    ) -> Tensor:
        """All of the network's arithmetic: what `Denoiser.compile` compiles.

        features: see `features`; grids: those of the blocks of each stage; conditions: what
        `conditioning` takes.
        """
        cond = self.conditioning(*conditions)
        x = x.to(self.time_emb.weight.dtype)  # a network may be kept in half precision
        x = self.patch_in(x.movedim(-3, -1))  # [B, h/p, w/p, width]
        skips: list[Tensor] = []
        for stage, (i, blocks) in enumerate(self.stages):
            if stage > len(self.merges):
                x = self.splits[i](x, skips.pop())
            recompute = i in self.recompute and torch.is_grad_enabled()
            for block, grid in zip(blocks, grids[stage], strict=True):
                inputs = x, grid, cond, features[i]
                if recompute:
                    x = checkpoint(block, *inputs, use_reentrant=False)
                else:
                    x = block(*inputs)
            if stage < len(self.merges):
                skips.append(x)
                x = self.merges[i](x)
        return self.patch_out(self.out_norm(x)).movedim(-1, -3)

    @property
    def stages(self) -> list[tuple[int, Any]]:
        """Level and blocks of each stage: on the way down, in the middle, and on the way up."""
        down, up = enumerate(self.down_levels), enumerate(self.up_levels)
        return [*down, (len(self.merges), self.mid_level), *reversed(list(up))]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_grids": {}}  # of the process, and made again

    @torch.inference_mode(False)  # kept for later, when gradients may be wanted
    def _places(self, device: torch.device) -> list[list[Grid]]:
        """The grids of all blocks, computed once for a device."""
        key = device, self.time_emb.weight.dtype, backend_in_use()
        if key not in self._grids:
            self._grids[key] = [self._stage(i, blocks, device) for i, blocks in self.stages]
        return self._grids[key]

    def _stage(self, i: int, blocks: Iterable[Any], device: torch.device) -> list[Grid]:
        config, level = self.config, self.config.levels[i]
        h, w = (side // (config.patch * 2**i) for side in config.image_shape[1:])
        streams = 2 if level.joint else 1
        dtype = self.time_emb.weight.dtype
        attention = make_attention(h, w, level.kernel, streams, device, level.d_head, dtype)
        positions = layers.axial_positions(h, w, device)
        return [(attention, block.self_attn.pos_emb(positions)) for block in blocks]

    def conditioning(
        self,
        c_noise: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None,
        noise_level: Tensor | None,
    ) -> Tensor:
        """The vector `[B, mapping_width]` that steers every norm; noise_level: of y, `[B]`."""
        if augment_labels is None:
            augment_labels = c_noise.new_zeros(len(c_noise), AUGMENT_DIM)
        cond = self.time_in_proj(self.time_emb(c_noise[:, None]))
        cond = cond + self.aug_in_proj(self.aug_emb(augment_labels))
        if noise_level is not None:
            c_measurement = (noise_level + _LEAST_LEVEL).log() / 4  # on the scale of c_noise
            cond = cond + self.noise_in_proj(self.noise_emb(c_measurement[:, None]))
        if self.config.num_classes:
            null = self.config.num_classes
            if class_labels is None:
                class_labels = torch.full_like(c_noise, -1, dtype=torch.int64)
            cond = cond + self.class_emb(torch.where(class_labels < 0, null, class_labels))
        return self.mapping(cond)


def _forget_grids(network: InvFusion, keys: object) -> None:
    """Loaded weights may have other rotary frequencies."""
    network._grids.clear()
