"""natten's two operations as its documentation has them, for machines without its kernels."""

import torch

from benchmarks.reference_path import dense_mask


def na2d(q, k, v, kernel_size, scale, return_lse):
    """Plain steps, sums in full precision."""
    h, w = q.shape[1:3]
    dtype = v.dtype
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
    assert kernel_size[0] == kernel_size[1] <= min(h, w)
    logits = scale * torch.einsum("bind,bjnd->bnij", q.flatten(1, 2), k.flatten(1, 2))
    logits = logits.masked_fill(~dense_mask(h, w, kernel_size[0]), -torch.inf)
    out = torch.einsum("bnij,bjnd->bind", logits.softmax(-1), v.flatten(1, 2)).unflatten(1, (h, w))
    lse = logits.logsumexp(-1).movedim(1, -1).unflatten(1, (h, w))
    return (out.to(dtype), lse) if return_lse else out.to(dtype)


def merge_attentions(outputs, lse_tensors):
    """`[B, tokens, heads, d]` with `[B, tokens, heads]`."""
    total = torch.stack(lse_tensors).logsumexp(0)
    parts = zip(outputs, lse_tensors, strict=True)
    merged = sum(out * (lse - total).exp()[..., None] for out, lse in parts)
    return merged.to(outputs[0].dtype), total
