"""The log: a line a request, its number on every answer, and no word of a prompt."""

from __future__ import annotations

import http.client
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateways import CHAT, Puppet, faked, refused, running

from quicksilver.nouns import Burst, Endpoint
from quicksilver.serve.access import JsonLines
from quicksilver.serve.gateway import Gateway
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, listen, open_answer, until


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer) as endpoint:
        yield endpoint


class Log:
    """What was logged of requests, as JSON."""

    def __init__(self, records: pytest.LogCaptureFixture) -> None:
        self._records = records

    def lines(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many lines: a request is logged after its answer has gone out."""
        until(lambda: len(self._records.records) >= count)
        return [json.loads(JsonLines().format(record)) for record in self._records.records]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO, "quicksilver.access")
    return Log(caplog)


def request_id(endpoint: Endpoint, path: str, given: str | None = None, method: str = "GET") -> str:
    parts = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request(method, path, headers={} if given is None else {"X-Request-Id": given.encode("latin-1")})
    response = connection.getresponse()
    response.read()
    return response.headers["x-request-id"]


def test_a_request_is_a_line_without_its_prompt(endpoint: Endpoint, log: Log) -> None:
    whole = ask(endpoint, "/completions", {"prompt": "the river", "n": 2, "max_tokens": 5, "ignore_eos": True})
    listen(endpoint, "/chat/completions", CHAT)
    first, second = log.lines(2)
    assert list(first)[:3] == ["time", "level", "logger"]
    assert (
        first | {"status": 200, "model": "tiny", "stream": False, "path": "/v1/completions", "method": "POST"} == first
    )
    assert first["client"] == "127.0.0.1"
    assert first["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert first["completion_tokens"] == 10
    assert first["finish_reasons"] == ["length", "length"]
    assert 0 <= first["ttft_ms"] <= first["duration_ms"]
    assert (second["stream"], second["finish_reasons"]) == (True, ["stop"])
    assert "river" not in json.dumps([first, second])


def test_a_failure_says_its_code(endpoint: Endpoint, log: Log) -> None:
    refused(endpoint, "/v1/completions", {"prompt": "a", "model": "other"})
    refused(endpoint, "/v1/nothing\x7f".replace("\x7f", "%0a"), {})
    missing, unknown = log.lines(2)
    assert (missing["status"], missing["error"]) == (404, "model_not_found")
    assert (unknown["status"], unknown["error"], unknown["path"]) == (404, "not_found", "/v1/nothing%0a")


def test_what_ends_early_says_so(tokenizer: Tokenizer, log: Log) -> None:
    puppet = Puppet()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint:
        puppet.script = [Burst([70])]
        response = open_answer(endpoint, "/completions", {"prompt": "a", "stream": True})
        response.readline()
        puppet.deliver[0](Burst([], finish="lost"))
        response.read()
        open_answer(endpoint, "/completions", {"prompt": "a", "stream": True}).close()
        until(lambda: puppet.cancelled == [1])
        lost, left = log.lines(2)
    assert (lost["status"], lost["error"]) == (200, "engine_died")
    assert left["finish_reasons"] == ["abort"]


@pytest.mark.parametrize("given", ["abc-1", "x" * 128, "{[~"])
def test_a_request_keeps_its_number(endpoint: Endpoint, log: Log, given: str) -> None:
    assert request_id(endpoint, "/v1/models", given) == given
    assert log.lines(1)[0]["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "\xe9"])
def test_a_number_is_made_where_none_is_sane(endpoint: Endpoint, given: str | None) -> None:
    made = {
        request_id(endpoint, path, given, method)
        for path, method in (("/health", "GET"), ("/no", "GET"), ("/health", "PUT"))
    }
    assert len(made) == 3
    assert {len(number) for number in made} == {32}


def test_probes_aren_t_logged(endpoint: Endpoint, log: Log) -> None:
    for path in ("//health", "//ready", "/models"):
        ask(endpoint, path)
    (only,) = log.lines(1)
    assert only["path"] == "/v1/models"


@pytest.mark.parametrize("style", ["json", "text", "none"])
def test_the_log_has_a_line_of_the_style_that_was_asked_for(style: str) -> None:
    script = """
import logging, sys
from quicksilver.serve.access import record, set_up_logs
set_up_logs(sys.argv[1])
record(client="1.2.3.4", method="GET", path="/", status=200, duration_ms=1, request_id="abc")
try: 1 / 0
except ZeroDivisionError: logging.getLogger("quicksilver.serve").exception("Request abc failed.")
"""
    done = subprocess.run([sys.executable, "-c", script, style], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    if style == "json":
        request, failure = map(json.loads, lines)
        assert request["path"] == "/"
        assert failure["message"] == "Request abc failed."
        assert "ZeroDivisionError" in failure["exception"]
    else:
        assert lines[-1].startswith("ZeroDivisionError")
        assert lines[0].endswith("1.2.3.4 GET / 200 in 1 ms, abc") == (style == "text")
