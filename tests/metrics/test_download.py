"""Downloads: a checked file or nothing."""

import hashlib
import http.server
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from detector_cases import sha256

from metrics.download import fetch


def test_fetch_puts_a_checked_file_in_place(server, tmp_path, capsys):
    folder, url = server
    (folder / "weights").write_bytes(bytes(range(256)) * 5000)
    dest = tmp_path / "new" / "folder" / "weights"
    digest = sha256(folder / "weights")
    assert fetch(f"{url}/weights", dest, digest[:8]) == dest
    assert dest.read_bytes() == (folder / "weights").read_bytes()
    assert [p.name for p in dest.parent.iterdir()] == ["weights"]
    assert "100%" in capsys.readouterr().err


def test_fetch_keeps_nothing_of_a_wrong_or_missing_file(server, tmp_path):
    folder, url = server
    (folder / "weights").write_bytes(b"not them")
    dest = tmp_path / "dest" / "weights"
    dest.parent.mkdir()
    dest.write_bytes(b"older")
    with pytest.raises(ValueError, match=r'wrong or incomplete file: .*expected "6726825d"'):
        fetch(f"{url}/weights", dest, "6726825d")
    with pytest.raises(OSError, match="404"):
        fetch(f"{url}/none", dest, "6726825d")
    assert dest.read_bytes() == b"older"
    assert [p.name for p in dest.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf", OSError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", ValueError),
        (b"no HTTP at all\r\n", OSError),
    ],
    ids=["cut off", "too short", "another protocol"],
)
def test_fetch_tells_a_broken_answer(tmp_path, answer, error):
    class Broken(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Broken) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{web.server_address[1]}/weights"
        with pytest.raises(error, match=f"^{url} gave (no whole answer|a wrong or incomplete)"):
            fetch(url, tmp_path / "a", "00")
        web.shutdown()
        thread.join()
    assert not list(tmp_path.iterdir())


def test_processes_that_want_a_file_at_once_download_it_once(tmp_path):
    content, asked = bytes(range(256)), []

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            time.sleep(0.5)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{web.server_address[1]}/weights"
        digest = hashlib.sha256(content).hexdigest()
        started = threading.Barrier(4)

        def one(_):
            started.wait()
            return fetch(url, tmp_path / "new" / "weights", digest)

        # Threads stand for processes: each opens the folder, and a lock belongs to the opening.
        with ThreadPoolExecutor(4) as pool:
            paths = list(pool.map(one, range(4)))
        web.shutdown()
        thread.join()
    assert len(asked) == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["weights"]
    assert paths[0].read_bytes() == content
