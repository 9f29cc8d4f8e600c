"""Clients that mean harm or are broken, over real sockets: a typed 4xx or a clean close, no traceback, no stalled neighbour."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateways import CHAT, Puppet, faked, refused, running

from quicksilver.engines.grammar_check import GrammarCheck
from quicksilver.nouns import Burst, Endpoint
from quicksilver.serve.connection import MAX_HEAD
from quicksilver.serve.gateway import LONG_CONVERSATION, LONG_TEXT, Gateway
from quicksilver.serve.limits import Limits
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, listen, open_answer, until

HASTY = Limits(client_timeout_s=0.3)
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps({"prompt": "the river", "max_tokens": 5, "ignore_eos": True}).encode()
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def hasty(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer, HASTY) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does, the server's log has no failure of the server's."""
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


@contextmanager
def connected(endpoint: Endpoint) -> Iterator[socket.socket]:
    parts = urlsplit(endpoint.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as client:
        yield client


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass  # it closed with something of ours unread
    return b"".join(parts)


def sent(endpoint: Endpoint, data: bytes) -> bytes:
    """Send bytes and nothing more, and return all that comes until the server closes."""
    with connected(endpoint) as client:
        client.sendall(data)
        return read_all(client)


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: " in head
    return int(head.split()[1]), json.loads(body)["error"]


DEEP = b"[" * 100_000
BODIES: list[tuple[str, bytes, int]] = [
    ("half", b'{"prompt": "a', 400),
    ("NaN", b'{"prompt": "a", "temperature": NaN}', 400),
    ("Infinity", b'{"prompt": "a", "temperature": Infinity}', 400),
    ("-Infinity", b'{"prompt": "a", "top_p": -Infinity}', 400),
    ("1e999", b'{"prompt": "a", "temperature": 1e999}', 400),
    ("invalid UTF-8", b'{"prompt": "\xc3\x28"}', 400),
    ("overlong UTF-8", b'{"prompt": "\xc0\xaf"}', 400),
    ("high surrogate", b'{"prompt": "\\ud800"}', 400),
    ("low surrogate", b'{"prompt": "\\udfff a"}', 400),
    ("surrogates the wrong way round", b'{"prompt": "\\udfff\\ud800"}', 400),
    ("surrogate in a key", b'{"prompt": "a", "\\ud800": 1}', 400),
    ("UTF-16", '{"prompt": "a"}'.encode("utf-16"), 400),
    ("NUL in a text", b'{"prompt": "a\\u0000b", "max_tokens": 2}', 200),
    ("deep", DEEP, 400),
    ("deep prompt", b'{"prompt": ' + DEEP + b"]" * 100_000 + b"}", 400),
    ("deep object", b'{"metadata": ' + b'{"a":' * 100_000, 400),
    ("1,000 stops", json.dumps({"prompt": "a", "stop": ["x"] * 1000}).encode(), 400),
    ("a stop of 1 MB", json.dumps({"prompt": "a", "stop": "x" * 1_000_000}).encode(), 400),
    ("other model", json.dumps({"prompt": "a", "model": "\n\r\x00"}).encode(), 404),
    ("a model's name of 5 MB", json.dumps({"prompt": "a", "model": "x" * 5_000_000}).encode(), 404),
    ("a field's name of 5 MB", json.dumps({"prompt": "a", "x" * 5_000_000: 1}).encode(), 400),
    ("200,000 fields", json.dumps({"prompt": "a"} | {f"x{n}": n for n in range(200_000)}).encode(), 400),
    ("the same field often", b'{"prompt": "a"' + b', "prompt": "a"' * 100_000 + b', "max_tokens": 1}', 200),
    ("a million token ids", json.dumps({"prompt": [5] * 1_000_000}).encode(), 400),
    ("a million empty prompts", json.dumps({"prompt": [""] * 1_000_000}).encode(), 400),
    ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", 400),
    *[
        (f"{field} of {len(str(number))} digits", b'{"prompt": "a", "%s": %d}' % (field.encode(), number), status)
        for field, status in (("max_tokens", 400), ("top_k", 400), ("seed", 400), ("n", 400), ("min_tokens", 400), ("temperature", 400))
        for number in (10**19, 10**30, 10**4000)
    ],
    ("an int of 100,000 digits", b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}", 400),
    ("token ids of 30 digits", b'{"prompt": [%d]}' % 10**30, 400),
    ("a bias of 30 digits", b'{"prompt": "a", "logit_bias": {"%d": 1}}' % 10**30, 400),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), [one[1:] for one in BODIES], ids=[one[0] for one in BODIES])
def test_a_bad_body_is_a_typed_400(endpoint: Endpoint, body: bytes, status: int) -> None:
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = sent(endpoint, head + body)
    assert int(answer.split()[1]) == status
    assert len(answer) < 10_000
    if status != 200:
        error = error_of(answer)[1]
        assert error["type"] == "invalid_request_error"
        assert error["message"].endswith(".")


def test_a_conversation_of_50_000_turns_is_a_typed_400(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/chat/completions", {"messages": CHAT["messages"] * 50_000})
    assert (status, error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_mb_is_refused(endpoint: Endpoint, chunked: bool) -> None:
    part = b"x" * 1_000_000
    framed = b"%x\r\n%s\r\n" % (len(part), part)
    with connected(endpoint) as client:
        client.sendall(POST + (b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 50000000") + b"\r\n\r\n")
        for _ in range(50):
            client.sendall(framed if chunked else part)
        client.sendall(b"0\r\n\r\n" if chunked else b"")
        status, error = error_of(read_all(client))
    assert (status, error["code"]) == (413, "request_too_large")


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xab" * 500,
    b"\x00" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"hello\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHo st: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: \x00\r\n\r\n",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 1, 2\r\n\r\nab",
    POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_http_is_a_typed_400(endpoint: Endpoint, data: bytes) -> None:
    status, error = error_of(sent(endpoint, data))
    assert (status, error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    "data",
    [
        b"GET http://x/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /health?%ff=%00&\xc3=1 HTTP/1.0\r\n\r\n".replace(b"\xc3", b"c"),
        b"GET /health HTTP/1.1\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        WHOLE.replace(b"Host", b"Connection: close\r\nExpect: 100-continue\r\nHost"),
    ],
    ids=["absolute", "1.0", "upgrade", "GET with a body", "expect"],
)  # fmt: skip
def test_odd_but_right_requests_are_answered(endpoint: Endpoint, data: bytes) -> None:
    answer = sent(endpoint, data).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "data", [b"OPTIONS * HTTP/1.1\r\n", b"GET /\xc3\xa4 HTTP/1.1\r\n".replace(b"\xc3\xa4", b"%C3%28%00")]
)
def test_odd_paths_aren_t_found(endpoint: Endpoint, data: bytes) -> None:
    assert error_of(sent(endpoint, data + b"Host: x\r\nConnection: close\r\n\r\n"))[0] == 404


@pytest.mark.parametrize(
    "data", [b"GET /health HTTP/1.1\r\nX: " + b"x" * 2_000_000, b"GET /" + b"x" * 2_000_000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 300_000],
    ids=["value", "path", "many"],
)  # fmt: skip
def test_a_head_without_end_is_refused(endpoint: Endpoint, data: bytes) -> None:
    with connected(endpoint) as client:
        try:
            client.sendall(data)
        except ConnectionError:
            return  # it closed before it had all of it
        answer = read_all(client)
        assert not answer or error_of(answer)[1]["code"] == "head_too_large"


def test_a_head_that_fits_is_answered(endpoint: Endpoint) -> None:
    head = b"GET /health HTTP/1.1\r\nConnection: close\r\nX: " + b"x" * (MAX_HEAD - 100) + b"\r\n\r\n"
    assert b" 200 OK" in sent(endpoint, head)


@pytest.mark.parametrize("data", [b"G", POST, POST + b"Content-Le"])
def test_a_head_that_never_ends_is_a_408(hasty: Endpoint, data: bytes) -> None:
    status, error = error_of(sent(hasty, data))
    assert (status, error["code"]) == (408, "request_too_slow")


def test_a_client_that_says_nothing_is_left(hasty: Endpoint) -> None:
    assert sent(hasty, b"") == b""


@pytest.mark.parametrize(
    "data", [POST + b"Content-Length: 9\r\n\r\n{", POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n"]
)
def test_a_body_that_never_ends_is_a_408(hasty: Endpoint, data: bytes) -> None:
    status, error = error_of(sent(hasty, data))
    assert (status, error["code"]) == (408, "request_too_slow")


def outlast_patience(endpoint: Endpoint) -> None:
    """Wait for twice as long as the server waits for a client."""
    for _ in range(2):
        assert sent(endpoint, b"") == b""


def drip(client: socket.socket, data: bytes) -> bytes:
    """Send a byte at a time, again and again, until the server closes; return what it said."""
    client.settimeout(0.05)
    while True:
        try:
            client.sendall(data)
            part = client.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
        client.settimeout(60)
        return part + read_all(client)


@pytest.mark.parametrize(
    "start", [b"GET /", POST + b"X: ", POST + b"Content-Length: 1000\r\n\r\n"], ids=["line", "head", "body"]
)
def test_a_request_by_drops_is_a_408(hasty: Endpoint, start: bytes) -> None:
    with connected(hasty) as client:
        client.sendall(start)
        assert error_of(drip(client, b"x"))[1]["code"] == "request_too_slow"


@pytest.mark.parametrize("data", [b"\r\n", b"x"], ids=["empty lines", "body"])
def test_drops_after_an_answer_don_t_keep_the_connection(hasty: Endpoint, data: bytes) -> None:
    request = (
        GET
        if data == b"\r\n"
        else GET.replace(b"/health", b"/nothing").replace(b"Host", b"Content-Length: 1000\r\nHost")
    )
    with connected(hasty) as client:
        client.sendall(request)
        assert client.recv(65536).startswith(b"HTTP/1.1 ")
        assert drip(client, data).count(b"HTTP/1.1 ") <= 1


def test_a_client_that_waits_for_its_answer_is_not_slow(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    with running(Gateway("tiny", HASTY), lambda: (tokenizer, puppet), HASTY) as endpoint, connected(endpoint) as client:
        client.sendall(WHOLE + POST)  # the second request is not whole, and the first one's answer takes its time
        outlast_patience(endpoint)
        puppet.deliver[0](Burst([70], finish="stop"))
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1 ") <= 2


def test_requests_in_one_go_are_answered_in_their_order(endpoint: Endpoint) -> None:
    last = GET.replace(b"Host", b"Connection: close\r\nHost")
    answer = sent(endpoint, WHOLE + GET * 500 + WHOLE.replace(b"completions", b"nothing") + last)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, *[200] * 500, 404, 200]


def test_garbage_behind_a_request_doesn_t_end_up_in_its_answer(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    puppet.script = [Burst([70])]
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint, connected(endpoint) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = client.recv(65536)
        client.sendall(b"\x00garbage\r\n\r\n")
        answer += read_all(client)
        assert answer.count(b"HTTP/1.1 ") == 1
        until(lambda: puppet.cancelled == [0])


@pytest.mark.parametrize("leave", ["half", "reset", "close"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_answer(tokenizer: Tokenizer, leave: str, stream: bool) -> None:
    puppet = Puppet()
    puppet.script = [Burst([70])]
    body = json.dumps({"prompt": "a", "stream": stream}).encode()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint:
        with connected(endpoint) as client:
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            until(lambda: bool(puppet.deliver))
            if leave == "half":  # the same on the wire as one that is gone, until it is written to
                client.shutdown(socket.SHUT_WR)
                read_all(client)
            elif leave == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        until(lambda: puppet.cancelled == [0])
        until(lambda: ask(endpoint, "//health")["running"] == 0)


@pytest.mark.parametrize("data", [POST + b"Content-Length: 9\r\n\r\n{", WHOLE[:30]])
def test_a_client_that_leaves_before_its_request_is_whole_leaves_nothing(endpoint: Endpoint, data: bytes) -> None:
    with connected(endpoint) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert ask(endpoint, "//health")["running"] == 0


@contextmanager
def deaf(endpoint: Endpoint, puppet: Puppet) -> Iterator[socket.socket]:
    """A client that asks for a stream and never reads, sent more than the sockets hold."""
    parts = urlsplit(endpoint.url)
    body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 2000}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((parts.hostname or "", parts.port or 0))
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: bool(puppet.deliver))
        for _ in range(20):
            puppet.deliver[0](Burst([70] * 20_000))
        yield client


def test_a_client_that_doesn_t_read_is_dropped(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    with running(Gateway("tiny", HASTY), lambda: (tokenizer, puppet), HASTY) as endpoint, deaf(endpoint, puppet):
        until(lambda: puppet.cancelled == [0])
        until(lambda: ask(endpoint, "//health")["running"] == 0)


def test_a_client_that_doesn_t_read_stalls_no_neighbour(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint, deaf(endpoint, puppet):
        puppet.script = [Burst([70], finish="stop")]
        assert ask(endpoint, "/completions", {"prompt": "a"})["usage"]["completion_tokens"] == 1
        assert listen(endpoint, "/chat/completions", CHAT)
        assert puppet.cancelled == []


def test_a_client_that_doesn_t_read_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    served = running(Gateway("tiny", HASTY), lambda: (tokenizer, puppet), HASTY)
    with served as endpoint, deaf(endpoint, puppet) as client:
        puppet.deliver[0](Burst([70], finish="stop"))
        outlast_patience(endpoint)
        assert b"[DONE]" not in read_all(client)


WORK: dict[str, tuple[type[Any], str, int, dict[str, Any]]] = {
    "a schema": (GrammarCheck, "check", 1, {"response_format": {"type": "json_object"}}),
    "a long conversation": (Tokenizer, "chat", LONG_CONVERSATION, {"messages": CHAT["messages"] * LONG_CONVERSATION}),
    "a long text": (Tokenizer, "encode", LONG_TEXT, {"messages": [{"role": "user", "content": "x" * LONG_TEXT}]}),
}


@pytest.mark.parametrize("what", WORK)
def test_what_takes_long_stalls_no_neighbour(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    kind, method, size, fields = WORK[what]
    begun, over = threading.Event(), threading.Event()
    work = getattr(kind, method)

    def slow(self: Any, asked: Any, *args: Any, **more: Any) -> Any:
        if len(asked) >= size:  # not the neighbour's
            begun.set()
            assert over.wait(60)
        return work(self, asked, *args, **more)

    monkeypatch.setattr(kind, method, slow)
    with ThreadPoolExecutor() as pool:
        heavy = pool.submit(lambda: open_answer(endpoint, "/chat/completions", CHAT | fields).status)
        assert begun.wait(60)
        assert ask(endpoint, "/completions", {"prompt": "a", "max_tokens": 2})["choices"]
        assert listen(endpoint, "/chat/completions", CHAT)
        assert not heavy.done()
        over.set()
        assert heavy.result(60) in (200, 400)


@pytest.mark.parametrize("schema", [
    {"type": "objct"},
    {"$ref": "#/definitions/none"},
    {"$ref": "http://127.0.0.1:9/x"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?=a)b"},
    {"enum": []},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "properties": {"\x00": {"type": "nul"}}},
    {"type": "string", "x": "x" * 200_000},
    {"properties": 5},
    {"items": [[[[]]]]},
], ids=lambda schema: json.dumps(schema)[:40])  # fmt: skip
def test_a_schema_that_can_t_be_followed_is_a_typed_400(endpoint: Endpoint, schema: Any) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    status, error = refused(endpoint, "/v1/chat/completions", CHAT | {"response_format": response_format})
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert len(error["message"]) < 2000
