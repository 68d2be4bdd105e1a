"""The InvFusion network: HDiT whose attention blocks apply the degradation to their own features.

Paper, sections 3 and A.2; with no Feature Degradation Layer it is plain HDiT.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degradation import Problem
from degradation.base import full_precision
from degradation.features import mix
from networks.attention import attention
from networks.dropout import Dropout
from networks.layers import (
    AdaRMSNorm,
    AxialRoPE,
    FeedForward,
    FourierFeatures,
    Mapping,
    RMSNorm,
    TokenMerge,
    TokenSplit,
    axial_positions,
    rotate,
    zero_init,
)

AUGMENT_DIM = 9  # numbers that describe a non-leaking augmentation (EDM, appendix F.2)


@dataclass(frozen=True)
class LevelConfig:
    """One resolution of the network; `kernel` None means global attention."""

    depth: int
    width: int
    kernel: int | None
    d_head: int = 64
    d_ff: int | None = None  # 3·width
    joint: bool = True  # with a Feature Degradation Layer in every block
    dropout: float = 0.0


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
    sigma_data: float = 0.5  # standard deviation of pixels; unless consistent, which estimates it
    consistent: bool = False  # start from the smoothest image with Hx = y, project onto it

    def __post_init__(self) -> None:
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


class FeatureDegradation(nn.Module):
    """Feature Degradation Layer: H†·T([y, Ha]) on features seen as a stack of K images (Eq. 5).

    T mixes [y, Ha] along K; as two products there is nothing to concatenate.
    """

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.patch = patch
        stack = width // (patch * patch * channels)
        self.deg_linear = nn.Linear(stack + 1, stack)

    def forward(self, x: Tensor, problem: Problem) -> Tensor:
        """Tokens `[B, h, w, d]` to tokens."""
        features = problem.features(self.patch)
        measured = features.H(x)  # [..., K, n]
        mixed = mix(measured, features.y, self.deg_linear.weight, self.deg_linear.bias)
        return features.H_pinv(F.gelu(mixed)).to(x.dtype)


class SelfAttention(nn.Module):
    """Cosine-similarity attention with axial RoPE; joint with a second stream y when it has one.

    The joint stream adds keys from [x̄, ȳ] and values from ȳ under one softmax (A.2.2).
    """

    def __init__(
        self,
        width: int,
        d_head: int,
        cond_width: int,
        kernel: int | None = None,
        joint: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.d_head, self.n_heads, self.kernel = d_head, width // d_head, kernel
        self.norm = AdaRMSNorm(width, cond_width)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.full((self.n_heads,), 10.0))
        self.pos_emb = AxialRoPE(d_head, self.n_heads)
        self.dropout = Dropout(dropout)
        self.out_proj = zero_init(nn.Linear(width, width, bias=False))
        if joint:
            self.jnorm = AdaRMSNorm(width, cond_width)
            self.jk_proj = nn.Linear(2 * width, width, bias=False)
            self.jv_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, cond: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """x, y `[B, h, w, d]`, positions `[h, w, 2]`, cond `[B, cond_width]`."""
        skip, rope = x, self.pos_emb(positions)
        x = self.norm(x, cond)
        q, k, v = self.qkv_proj(x).chunk(3, -1)
        streams = [(self._direction(k, rope), self._heads(v))]
        if y is not None:
            y = self.jnorm(y, cond)
            from_x, from_y = self.jk_proj.weight.chunk(2, -1)
            jk = F.linear(x, from_x) + F.linear(y, from_y)
            streams.append((self._direction(jk, rope), self._heads(self.jv_proj(y))))
        out = attention(self._direction(q, rope), streams, self.kernel)
        return skip + self.out_proj(self.dropout(out.flatten(-2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def _direction(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Heads of length √scale, rotated by position: their products are scale · cosine.

        In float32 (or better): a logit of scale 10 should not be rounded to three digits.
        """
        x = full_precision(self._heads(x))
        length = torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
        return rotate(x * (length * self.scale.sqrt()[:, None]), *rope)


class Block(nn.Module):
    """InvFusion block: Feature Degradation Layer, joint attention, feed-forward (Fig. 2)."""

    def __init__(self, config: LevelConfig, patch: int, channels: int, cond_width: int):
        super().__init__()
        width = config.width
        if config.joint:
            self.feature_degradation = FeatureDegradation(width, patch, channels)
        self.self_attn = SelfAttention(
            width, config.d_head, cond_width, config.kernel, config.joint, config.dropout
        )
        self.ff = FeedForward(width, config.d_ff or 3 * width, cond_width, config.dropout)
        self.joint = config.joint

    def forward(self, x: Tensor, positions: Tensor, cond: Tensor, problem: Problem) -> Tensor:
        y = self.feature_degradation(x, problem) if self.joint else None
        return self.ff(self.self_attn(x, positions, cond, y), cond)


class InvFusion(nn.Module):
    """The raw network F(x, c_noise; H, y) on `[B, C·in_mult, h, w]` inputs.

    Returns `[B, C·out_mult, h, w]`.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        channels, width = config.image_shape[0], config.mapping_width
        levels = config.levels
        self.patch_in = TokenMerge(channels * config.in_mult, levels[0].width, config.patch)
        self.time_emb = FourierFeatures(1, width)
        self.time_in_proj = nn.Linear(width, width, bias=False)
        self.aug_emb = FourierFeatures(AUGMENT_DIM, width)
        self.aug_in_proj = nn.Linear(width, width, bias=False)
        if config.num_classes:
            self.class_emb = nn.Embedding(config.num_classes + 1, width)  # the last is "no class"
        self.mapping = Mapping(config.mapping_depth, width, config.mapping_d_ff or 3 * width)

        def blocks(i: int) -> nn.ModuleList:
            patch = config.patch * 2**i
            return nn.ModuleList(
                Block(levels[i], patch, channels, width) for _ in range(levels[i].depth)
            )

        outer = range(len(levels) - 1)
        pairs = [(levels[i].width, levels[i + 1].width) for i in outer]
        self.down_levels = nn.ModuleList(blocks(i) for i in outer)
        self.up_levels = nn.ModuleList(blocks(i) for i in outer)
        self.mid_level = blocks(len(levels) - 1)
        self.merges = nn.ModuleList(TokenMerge(fine, coarse, 2) for fine, coarse in pairs)
        self.splits = nn.ModuleList(TokenSplit(coarse, fine, 2) for fine, coarse in pairs)
        self.out_norm = RMSNorm(levels[0].width)
        self.patch_out = TokenSplit(
            levels[0].width, channels * config.out_mult, config.patch, skip=False
        )
        zero_init(self.patch_out.proj)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """c_noise `[B]` is ln(σ)/4; augment_labels `[B, 9]`, zero when omitted."""
        cond = self.conditioning(c_noise, problem.class_labels, augment_labels)
        x = self.patch_in(x.movedim(-3, -1))  # [B, h/p, w/p, width]
        positions = axial_positions(x.shape[1], x.shape[2], x.device)
        skips = []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            x = _run(level, x, positions, cond, problem)
            skips.append((x, positions))
            x, positions = merge(x), _coarser(positions)
        x = _run(self.mid_level, x, positions, cond, problem)
        for level, split in zip(reversed(self.up_levels), reversed(self.splits), strict=True):
            skip, positions = skips.pop()
            x = _run(level, split(x, skip), positions, cond, problem)
        return self.patch_out(self.out_norm(x)).movedim(-1, -3)

    def conditioning(
        self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """The vector `[B, mapping_width]` that steers every norm."""
        if augment_labels is None:
            augment_labels = c_noise.new_zeros(len(c_noise), AUGMENT_DIM)
        cond = self.time_in_proj(self.time_emb(c_noise[:, None]))
        cond = cond + self.aug_in_proj(self.aug_emb(augment_labels))
        if self.config.num_classes:
            null = self.config.num_classes
            if class_labels is None:
                class_labels = torch.full_like(c_noise, -1, dtype=torch.int64)
            cond = cond + self.class_emb(torch.where(class_labels < 0, null, class_labels))
        return self.mapping(cond)


def _run(level: nn.Module, x: Tensor, positions: Tensor, cond: Tensor, problem: Problem) -> Tensor:
    for block in level.children():
        x = block(x, positions, cond, problem)
    return x


def _coarser(positions: Tensor) -> Tensor:
    return positions.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).mean((1, 3))
