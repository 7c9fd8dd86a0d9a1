"""Weight files of other projects: only the known bytes are read, and every failure is one line with a remedy."""

import hashlib
import http.server
import pickle
import threading
from pathlib import Path

import pytest
import torch

from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UnsafeFileError
from vq3dcli.weights.third_party import PublishedFile, cached_file, package_file, read_state_dict


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_known_weights_are_read(weights):
    found = read_state_dict(weights, sha256(weights))
    assert set(found) == {"a", "b"} and torch.equal(found["a"], torch.arange(6.0))


def test_other_bytes_are_refused(weights):
    expected = sha256(weights)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UnsafeFileError, match=r"weights\.pth"):
        read_state_dict(weights, expected)


def test_nothing_is_executed_even_if_the_hash_is_right(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(DataError):
        read_state_dict(path, sha256(path))
    torch.save({"a": Hostile()}, path, pickle_protocol=2)
    with pytest.raises(DataError):
        read_state_dict(path, sha256(path))
    assert not (tmp_path / "executed").exists()


def test_files_that_are_no_table_of_tensors(tmp_path):
    for value in ([1, 2], {"a": 1}, torch.ones(3)):
        torch.save(value, tmp_path / "x.pth")
        with pytest.raises(DataError, match="not a table"):
            read_state_dict(tmp_path / "x.pth", sha256(tmp_path / "x.pth"))
    for data in (b"", b"PK\3\4 cut", b"<html>not found</html>"):
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(DataError):
            read_state_dict(tmp_path / "x.pth", sha256(tmp_path / "x.pth"))


def test_a_missing_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(InputMissingError, match="no such weights file"):
            read_state_dict(path, "0" * 64)


def test_a_file_inside_a_package():
    assert package_file("vq3dcli", "py.typed", purpose="a test", remedy="none").is_file()
    for package, inside in (("vq3dcli", "absent.pth"), ("no_such_package_here", "x.pth"), ("hashlib", "x.pth")):
        with pytest.raises(UnavailableError, match="a test needs") as caught:
            package_file(package, inside, purpose="a test", remedy="pip install it")
        assert caught.value.remedy == "pip install it"


class Server(http.server.BaseHTTPRequestHandler):
    content = b"weights of a network"

    def do_GET(self):
        if self.path != "/file.pth":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """A server on this machine, and an empty checkpoint folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_once(address, capfd):
    file = PublishedFile("file.pth", f"{address}/file.pth", hashlib.sha256(Server.content).hexdigest())
    path = cached_file(file, purpose="a test", remedy="give its path")
    assert path.read_bytes() == Server.content
    # The second time nothing is asked of the network.
    assert cached_file(file._replace(url=f"{address}/gone"), purpose="a test", remedy="") == path
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_fetched_names_the_file_and_the_remedy(address):
    digest = hashlib.sha256(Server.content).hexdigest()
    for url, sha in ((f"{address}/gone", digest), ("http://127.0.0.1:1/x", digest), (f"{address}/file.pth", "0" * 64)):
        with pytest.raises(UnavailableError) as caught:
            cached_file(PublishedFile("file.pth", url, sha), purpose="LPIPS", remedy="give its path")
        text = str(caught.value)
        assert "LPIPS" in text and "(file.pth)" in text and url in text and "give its path" in text and "\n" not in text
    assert not list((Path(torch.hub.get_dir())).rglob("*.pth"))
