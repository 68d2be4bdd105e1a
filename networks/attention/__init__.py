"""Exact joint attention, global or over neighbourhoods, of queries over several key streams.

A neighbourhood is the k×k window around the query, pushed inside at the borders, so every query
sees exactly k² keys of each stream (Hassani et al., "Neighborhood Attention Transformer", 2023).
One softmax runs over the keys of all streams (paper, A.2.2). A backend is an object for one map
and window, `backend(q, streams)`, and all of them compute the same; the device decides which.
"""

from networks.attention.backends import (
    BACKENDS,
    Attention,
    backend_in_use,
    make_attention,
    use_backend,
)

__all__ = ["BACKENDS", "Attention", "backend_in_use", "make_attention", "use_backend"]
