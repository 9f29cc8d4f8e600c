"""Models of the Hugging Face hub, against a hub of one's own on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quicksilver.errors import BadInputError
from quicksilver.sources.models import resolve
from quicksilver.testing.tiny import make_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder as the repository `org/tiny`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card: dict[str, str] = {"license": "apache-2.0"}
        self.status = 200
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def answer(self, *, body: bool) -> None:
                path = self.path.split("?")[0]
                headers = {"X-Repo-Commit": COMMIT}
                status, content = 404, b"{}"
                if hub.status != 200:
                    status, content = hub.status, b"{}"
                    headers["X-Error-Code"] = "GatedRepo" if status == 403 else "RepoNotFound"
                elif path.startswith("/api/models/org/tiny"):
                    status, content = 200, json.dumps(hub.info()).encode()
                elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
                    name = path.rsplit("/", 1)[1]
                    status, content = 200, (hub.folder / name).read_bytes()
                    headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
                    hub.served += [name] if body else []
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def info(self) -> dict[str, object]:
        files = [{"rfilename": p.name, "size": p.stat().st_size} for p in sorted(self.folder.iterdir())]
        return {"id": "org/tiny", "sha": COMMIT, "siblings": files, "cardData": self.card, "private": False, "tags": []}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    made = Hub(make_tiny_model(tmp_path / "repository"))
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_repository_is_downloaded_and_resolved(hub: Hub) -> None:
    (hub.folder / "pytorch_model.bin").write_bytes(b"pickled")
    (hub.folder / "consolidated.safetensors").write_bytes(b"the same once more")
    model = resolve("org/tiny")
    assert (model.name, model.source, model.licence, model.facts.layers) == ("tiny", "org/tiny", "apache-2.0", 2)
    assert model.fingerprint == resolve(str(hub.folder)).fingerprint
    assert "model.safetensors" in hub.served
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & set(hub.served)


def test_what_was_downloaded_is_found_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve("org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("org/tiny").fingerprint == first.fingerprint


def test_without_a_network_the_sentence_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInputError, match=r"hub can't be reached; .*hf download org/tiny"):
        resolve("org/tiny")


def test_only_pickles_are_refused_before_anything_is_downloaded(hub: Hub) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="only as pickle files"):
        resolve("org/tiny")
    assert hub.served == []


def test_code_is_refused_before_anything_is_downloaded(hub: Hub) -> None:
    (hub.folder / "modeling_tiny.py").write_text("import os", encoding="utf-8")
    with pytest.raises(BadInputError, match="brings code of its own"):
        resolve("org/tiny")
    assert hub.served == []


def test_a_licence_of_the_llama_kind_has_to_be_accepted(hub: Hub) -> None:
    hub.card = {"license": "llama3.2"}
    with pytest.raises(BadInputError, match=r"llama3\.2; read it, and give --accept-licence"):
        resolve("org/tiny")
    assert hub.served == []
    assert resolve("org/tiny", accept_licence=True).licence == "llama3.2"


@pytest.mark.parametrize(("status", "sentence"), [(404, "has no model named 'org/tiny'"), (403, "is gated")])
def test_a_repository_that_is_not_open(hub: Hub, status: int, sentence: str) -> None:
    hub.status = status
    with pytest.raises(BadInputError, match=sentence):
        resolve("org/tiny")
