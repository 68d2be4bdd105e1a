"""Small pictures, a web server and a detector for the tests of features."""

import functools
import hashlib
import http.server

import torch


def images(count, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Colours(torch.nn.Module):
    """Mean colour and its squares: a detector anyone could write."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.float().mean(dim=(2, 3))
        return torch.cat([mean, mean * mean], dim=1)


def serve(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
