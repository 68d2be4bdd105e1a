"""What compiled functions of the networks share."""


def allow_graphs() -> None:
    """Let a function have a graph for each structure, size and gradient mode.

    PyTorch allows eight; beyond them it goes on without compiling, or fails.
    """
    import torch._dynamo  # seconds, which only a compiler is worth

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 256)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 1024)
