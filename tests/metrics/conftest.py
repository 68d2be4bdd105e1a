"""A cache folder, a web server, and detectors in files."""

import threading

import pytest
import torch
from detector_cases import Colours, images, serve

from metrics.efficientnet import EfficientNetLite0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of a user who has none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "invfusion"


@pytest.fixture
def weights_file(tmp_path):
    """Of EfficientNet-Lite0, drawn: means and variances as after training, so that maps differ."""
    torch.manual_seed(0)
    network = EfficientNetLite0().train()
    with torch.no_grad():
        network(images(8, side=48))
    path = tmp_path / "efficientnet-lite0.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "colours.pt"
    torch.jit.script(Colours()).save(str(path))
    return path


@pytest.fixture
def server(tmp_path):
    """(folder, its URL) of a web server on this machine."""
    folder = tmp_path / "web"
    folder.mkdir()
    with serve(folder) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()
