"""Remote: any server that speaks the OpenAI API, so that other people's servers can be measured too."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from quicksilver.errors import BadInputError, EngineError, unknown
from quicksilver.nouns.engine import Abilities, Endpoint, Engine
from quicksilver.nouns.settings import Settings

DOCUMENT = "remote.json"
ANSWER_LIMIT = 256 << 20

# Measured directly: a proxy would stand in the figures, and the load client uses none either.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Remote(Engine):
    """A server that runs somewhere else. Its artefact is a small JSON file: `{"url", "model", "api_key_env"}`."""

    name: ClassVar[str] = "remote"
    format: ClassVar[str] = "remote"
    abilities: ClassVar[Abilities] = Abilities(owned=False)

    def version(self) -> str:
        """Return the version of the API that it speaks; the server's own isn't known."""
        return "v1"

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        """Yield the endpoint that the artefact (the JSON file, or a folder with it) names; starts and stops nothing."""
        file = artifact / DOCUMENT if artifact.is_dir() else artifact
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInputError(f"{file} can't be read: {error.strerror}.") from error
        except ValueError as error:
            raise BadInputError(f"{file} is not JSON: {error}.") from error
        if not isinstance(document, dict) or not isinstance(document.get("url"), str):
            raise BadInputError(f"{file} has no 'url'.")
        for key in document.keys() - {"url", "model", "api_key_env"}:
            raise unknown(f"field in {file}", key, ("url", "model", "api_key_env"))
        yield connect(document["url"], document.get("model"), document.get("api_key_env"))


def connect(url: str, model: str | None = None, api_key_env: str | None = None) -> Endpoint:
    """Return the endpoint of a running server after it has listed its models.

    `url` may end in /v1 or not; `model` may be left out if the server has one only; `api_key_env` names the environment
    variable that holds the key. Raises BadInputError for a wrong argument, EngineError for a server that can't be used.
    """
    base = _base(url)
    api_key = None
    if api_key_env is not None:
        api_key = os.environ.get(api_key_env, "").strip()
        if not api_key:
            raise BadInputError(f"The environment variable {api_key_env}, which should hold the API key, isn't set.")
    status, answer = request_json(f"{base}/models", api_key=api_key)
    if status in (401, 403):
        raise EngineError(
            f"{base} refused the API key in {api_key_env} (HTTP {status})."
            if api_key
            else f"{base} wants an API key (HTTP {status}): name the environment variable that holds it."
        )
    entries = answer.get("data") if status == 200 and isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
        raise EngineError(
            f"{base} doesn't speak the OpenAI API: {base}/models answered HTTP {status} without a list of models."
        )
    names = [entry["id"] for entry in entries]
    if model is None:
        if not names:
            raise EngineError(f"{base} serves no model.")
        if len(names) > 1:
            raise BadInputError(f"{base} serves several models, name one of them: {', '.join(names[:20])}.")
        model = names[0]
    elif model not in names:
        raise unknown(f"model at {base}", model, names)
    return Endpoint(url=base, model=model, api_key=api_key)


def request_json(
    url: str, body: dict[str, Any] | None = None, *, api_key: str | None = None, timeout_s: float = 30.0
) -> tuple[int, Any]:
    """GET a URL, or POST a JSON body to it; return the status and the decoded answer (its text, if it isn't JSON).

    Raises EngineError if there is no HTTP answer.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    if api_key:
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            status, raw = response.status, response.read(ANSWER_LIMIT)
            if response.length:
                raise http.client.IncompleteRead(raw, response.length)
    except urllib.error.HTTPError as error:
        with error:
            status, raw = error.code, error.read(ANSWER_LIMIT)
    except TimeoutError as error:
        raise EngineError(f"{url} didn't answer within {timeout_s:g} s.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise EngineError(f"{url} didn't answer within {timeout_s:g} s.") from error
        raise EngineError(f"No HTTP answer came from {url}: {str(reason).strip() or repr(reason)}.") from error
    text = raw.decode(errors="replace")
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def _base(url: str) -> str:
    """Return the URL that ends in /v1, for a server's root, its /v1 or one of the paths below."""
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or any(ord(c) <= 32 or ord(c) > 126 for c in url.strip()):
        raise BadInputError(f"{url!r} is not the URL of a server, such as http://127.0.0.1:8000/v1.")
    base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    for path in ("/chat/completions", "/completions", "/models"):
        base = base.removesuffix(path)
    return base if base.endswith("/v1") else f"{base}/v1"
