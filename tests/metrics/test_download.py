"""Downloads: a checked file or nothing."""

import hashlib
import socketserver
import threading

import pytest

from metrics.download import cached_weights


def test_a_checked_file_is_put_in_place(server, cache, capsys):
    folder, url = server
    content = bytes(range(256)) * 5000
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    assert cached_weights(f"{url}/{name}", "wait") == cache / name
    assert (cache / name).read_bytes() == content
    assert [p.name for p in cache.iterdir()] == [name]
    assert "100%" in capsys.readouterr().err


def test_nothing_is_kept_of_a_wrong_or_missing_file(server, cache):
    folder, url = server
    (folder / "weights-6726825d.pth").write_bytes(b"not them")
    for name, reason in (("weights", '.*expected "6726825d"'), ("none", "HTTP Error 404")):
        address = f"{url}/{name}-6726825d.pth"
        message = rf"not at {cache}.*{address} cannot be downloaded \({reason}.*and wait"
        with pytest.raises(ValueError, match=message):
            cached_weights(address, "wait")
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf",
        b"no HTTP at all\r\n",
    ],
    ids=["cut off", "too short", "another protocol"],
)
def test_a_broken_answer_is_told(cache, answer):
    class Broken(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Broken) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{web.server_address[1]}/weights-00.pth"
        message = rf"(?s){url} cannot be downloaded \(.+\): get the file"
        with pytest.raises(ValueError, match=message):
            cached_weights(url, "wait")
        web.shutdown()
        thread.join()
    assert not list(cache.iterdir())
