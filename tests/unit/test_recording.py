"""An endpoint's record of its traffic: what is in it with and without consent, and what becomes of it when a disk is full."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from disks import small_disk
from gateways import CHAT, Puppet, faked, refused, running

from quicksilver import api
from quicksilver.bench.load import run_load
from quicksilver.engines.remote import request_json
from quicksilver.errors import BadInputError
from quicksilver.nouns import Burst, Endpoint
from quicksilver.nouns.traffic import RecordedRequest
from quicksilver.serve import gateway
from quicksilver.serve import recording as module
from quicksilver.serve.gateway import Gateway
from quicksilver.serve.limits import Limits
from quicksilver.serve.recording import Recorder
from quicksilver.serve.server import Recording, make_recording
from quicksilver.sources import workloads
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, listen, open_answer, until

MARK = "zanzibar"
TEXT: dict[str, Any] = {"prompt": f"the river of {MARK}", "max_tokens": 6, "ignore_eos": True}
TOOL = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {"type": "object"}}}
SCHEMA = {"name": MARK, "schema": {"type": "object", "properties": {MARK: {"type": "boolean"}}}}
CHAT_OF_MARK: dict[str, Any] = {
    "messages": [{"role": "developer", "content": MARK}, {"role": "user", "content": f"Where is {MARK}?"}],
    "max_tokens": 20,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, count: int) -> list[dict[str, Any]]:
    """Wait for so many lines: a request is recorded after its answer has gone out."""
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)
    return lines(path)


@contextmanager
def recorded(
    folder: Path, tokenizer: Tokenizer, path: Path, limits: Limits | None = None, **kept: Any
) -> Iterator[Endpoint]:
    with (
        closing(Recorder(Recording(path, **kept))) as recorder,
        faked(folder, tokenizer, limits, recorder) as endpoint,
    ):
        yield endpoint


def everything(endpoint: Endpoint, tokenizer: Tokenizer) -> int:
    """Ask for one of each kind, with a marker in every text of it; return how many are to be recorded."""
    ask(endpoint, "/completions", TEXT | {"n": 2, "stop": [MARK], "logit_bias": {"70": 1}, "seed": 7})
    listen(endpoint, "/completions", TEXT | {"user": MARK, "logprobs": 2})
    ask(endpoint, "/completions", TEXT | {"prompt": [TEXT["prompt"], MARK]})
    ask(endpoint, "/completions", TEXT | {"prompt": tokenizer.encode(MARK, special=False)})
    ask(endpoint, "/chat/completions", CHAT_OF_MARK)
    listen(endpoint, "/chat/completions", CHAT_OF_MARK | {"tools": [TOOL], "metadata": {MARK: MARK}})
    schema = {"type": "json_schema", "json_schema": SCHEMA}
    ask(endpoint, "/chat/completions", CHAT_OF_MARK | {"response_format": schema, "max_tokens": 60})
    # These are refused, and are no load.
    refused(endpoint, "/v1/completions", TEXT | {"model": MARK})
    refused(endpoint, "/v1/completions", b'{"prompt": "' + MARK.encode())
    refused(endpoint, "/v1/completions", TEXT | {"max_tokens": 10**6})
    return 7


def test_without_consent_there_is_no_word_of_any_prompt(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with recorded(folder, tokenizer, path) as endpoint:
        count = everything(endpoint, tokenizer)
        written(path, count)
        notice = ask(endpoint, "//openapi.json")["info"]["description"]
    assert "but no text" in notice
    assert MARK not in path.read_text(encoding="utf-8").lower()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    two, streamed, several, ids, chat, tools, schema = sorted(lines(path), key=lambda line: line["arrival_s"])
    texts = {"messages", "prompts", "stop", "tool_definitions", "json_schema", "answers"}
    assert not any(texts & set(line) for line in (two, streamed, several, ids, chat, tools, schema))
    assert (two["n"], two["completion_tokens"], two["finish_reasons"]) == (2, [6, 6], ["length", "length"])
    assert (two["stop_strings"], two["biased_tokens"]) == (1, 1)
    assert two["sampling"] == {"seed": 7, "ignore_eos": True}
    assert two["prompt_tokens"] == [len(tokenizer.encode(TEXT["prompt"], special=True))]
    assert (streamed["stream"], streamed["sampling"]) == (True, {"ignore_eos": True, "logprobs": 2})
    assert 0 <= streamed["ttft_ms"] <= streamed["duration_ms"]
    assert len(several["prompt_tokens"]) == len(several["completion_tokens"]) == 2
    assert ids["prompt_tokens"] == [len(tokenizer.encode(MARK, special=False))]
    assert (chat["api"], chat["max_tokens"], chat["model"]) == ("chat", 20, "tiny")
    assert (tools["tools"], schema["response_format"]) == (1, "json_schema")
    assert list(two)[:3] == ["record", "time", "arrival_s"]


def test_the_log_metrics_and_the_record_count_from_the_same_moment(
    folder: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "record.jsonl"
    caplog.set_level(logging.INFO, "quicksilver.access")
    render = gateway._render

    async def slow(*arguments: Any, **settings: Any) -> str:
        await asyncio.sleep(0.3)  # far more than an answer takes: whoever begins after it counts less
        return await render(*arguments, **settings)

    monkeypatch.setattr(gateway, "_render", slow)
    with recorded(folder, tokenizer, path) as endpoint:
        listen(endpoint, "/chat/completions", CHAT)
        (line,) = written(path, 1)
        until(lambda: len(caplog.records) >= 1)
        status, text = request_json(endpoint.url.removesuffix("/v1") + "/metrics", api_key=None, timeout_s=30)
    logged = caplog.records[0].args
    assert isinstance(logged, dict)
    assert line["ttft_ms"] >= 300
    assert logged["ttft_ms"] == pytest.approx(line["ttft_ms"], abs=0.06)  # it is rounded to tenths
    assert logged["duration_ms"] >= line["ttft_ms"]
    assert status == 200
    (counted,) = re.findall(r"^vllm:time_to_first_token_seconds_sum\S* (\S+)", str(text), re.MULTILINE)
    assert 1000 * float(counted) == pytest.approx(line["ttft_ms"], abs=0.001)


def test_a_record_without_prompts_is_a_workload_of_the_same_shapes(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "record.jsonl"
    with recorded(folder, tokenizer, path) as endpoint:
        written(path, everything(endpoint, tokenizer))
        kept = tmp_path / "kept.jsonl"  # what comes now is recorded as well
        kept.write_bytes(path.read_bytes())
        load = workloads.load(str(kept), trace=True)
        prompts = sorted([*load.calibration, *load.search, *load.evaluation], key=lambda p: p.arrival_s or 0)
        assert len(prompts) == 9  # two answers to one request, and two prompts in another
        assert "random sentences" in load.remark
        samples = run_load(endpoint, prompts, concurrency=4, max_tokens=load.max_tokens, out=tmp_path / "samples")
        replay = api.benchmark(endpoint.url, kept, arrivals="trace", out=tmp_path / "bench")
        with pytest.raises(BadInputError, match="in one round"):
            api.benchmark(endpoint.url, kept, arrivals="trace", rounds=2)
    assert [(speed.requests, speed.errors) for speed in replay.speeds] == [(8, 0)]  # and one that warmed up
    assert "random sentences" in " ".join(replay.notes)
    assert [sample.error for sample in samples] == [None] * 9
    lengths = {sample.prompt_id: sample.completion_tokens for sample in samples}
    asked = [n for line in sorted(lines(kept), key=lambda line: line["arrival_s"]) for n in line["completion_tokens"]]
    assert [lengths[prompt.id] for prompt in prompts] == asked


def test_with_consent_the_prompts_are_there_and_with_more_of_it_the_answers(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "record.jsonl"
    with recorded(folder, tokenizer, path, prompts=True, answers=True) as endpoint:
        said = ask(endpoint, "/chat/completions", CHAT_OF_MARK | {"n": 2, "temperature": 0.7, "seed": 3})
        written(path, 1)
        pieces = listen(endpoint, "/completions", TEXT | {"echo": True})
        written(path, 2)
        count = everything(endpoint, tokenizer)
        found = written(path, 2 + count)
        assert "THE PROMPTS AND THE ANSWERS" in ask(endpoint, "//openapi.json")["info"]["description"]
    chat, text = found[:2]
    assert chat["messages"] == CHAT_OF_MARK["messages"]
    assert chat["answers"] == [choice["message"]["content"] for choice in said["choices"]]
    assert text["prompts"] == [TEXT["prompt"]]
    whole = "".join(piece["choices"][0]["text"] for piece in pieces if piece["choices"])
    assert TEXT["prompt"] + text["answers"][0] == whole
    rest = found[2:]
    assert [line["stop"] for line in rest if "stop" in line] == [[MARK]]
    assert [line["tool_definitions"] for line in rest if "tool_definitions" in line] == [[TOOL]]
    assert [line["json_schema"] for line in rest if "json_schema" in line] == [SCHEMA]
    load = workloads.load(str(path), trace=True)
    prompts = [*load.calibration, *load.search, *load.evaluation]
    assert sum(prompt.messages is not None for prompt in prompts) == 5
    assert sum(prompt.token_ids is not None for prompt in prompts) == 1
    assert not any(prompt.ignore_eos for prompt in prompts)
    assert "2 requests had tools or a schema" in load.remark
    # Those who ask the same are in one split.
    splits = [
        {prompt.prompt for prompt in split} - {None} for split in (load.calibration, load.search, load.evaluation)
    ]
    assert sum(TEXT["prompt"] in split for split in splits) == 1


def test_prompts_alone_come_without_answers(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\u00fc"}'}}
    turns = [
        {"role": "user", "content": "Call it."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    with recorded(folder, tokenizer, path, prompts=True) as endpoint:
        ask(endpoint, "/chat/completions", {"messages": turns, "max_tokens": 5})
        (line,) = written(path, 1)
    assert "answers" not in line
    assert [turn["role"] for turn in line["messages"]] == ["user", "assistant", "tool"]
    again = line["messages"][1]["tool_calls"][0]
    assert json.loads(again["function"]["arguments"]) == {"a": "ü"}
    assert RecordedRequest.model_validate_json(path.read_bytes()).messages is not None


def test_what_ends_early_is_recorded_as_what_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    puppet = Puppet()
    limits = Limits(max_streams=1, max_waiting=0)
    gateway = Gateway("tiny", limits, recorder=(recorder := Recorder(Recording(path, prompts=True, answers=True))))
    with closing(recorder), running(gateway, lambda: (tokenizer, puppet)) as endpoint:
        puppet.script = [Burst([70, 71])]
        left = open_answer(endpoint, "/completions", {"prompt": "left", "stream": True})
        left.readline()
        status, error = refused(endpoint, "/v1/completions", {"prompt": "turned away"})
        assert (status, error["code"]) == (429, "too_many_requests")
        left.close()
        until(lambda: puppet.cancelled == [0])
        written(path, 2)
        lost = open_answer(endpoint, "/completions", {"prompt": "lost", "stream": True})
        lost.readline()
        puppet.deliver[1](Burst([], finish="lost"))
        lost.read()
        written(path, 3)
        refused(endpoint, "/v1/completions", {"prompt": "not honoured", "top_k": 13})
    turned, left_line, lost_line = lines(path)
    assert (turned["error"], turned["completion_tokens"], turned["finish_reasons"]) == (
        "too_many_requests",
        [0],
        ["abort"],
    )
    assert (left_line["completion_tokens"], left_line["finish_reasons"], left_line["answers"]) == (
        [2],
        ["abort"],
        [None],
    )
    assert "error" not in left_line
    assert (lost_line["error"], lost_line["completion_tokens"]) == ("engine_died", [2])


def test_a_record_goes_on_where_it_was(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.touch(0o644)
    for _ in range(2):
        with recorded(folder, tokenizer, path) as endpoint:
            ask(endpoint, "/completions", TEXT)
    with path.open("a", encoding="utf-8") as half:
        half.write('{"record":1,"time":"20')
    hour_ahead = time.time() + 3600
    os.utime(path, (hour_ahead, hour_ahead))  # the clock was set back since
    with recorded(folder, tokenizer, path) as endpoint:
        ask(endpoint, "/completions", TEXT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second, third = lines(path)
    assert first["arrival_s"] <= second["arrival_s"]
    assert third["arrival_s"] > 3500


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("Dear Ada", encoding="utf-8")
    path.chmod(0o644)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong, said in (
        (path, "something else than recorded traffic"),
        (pipe, "has to be a file"),
        (Path("/dev/null"), "has to be a file"),
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "record.jsonl", "no such file"),
    ):
        with pytest.raises(BadInputError, match=said):
            Recorder(Recording(wrong))
    assert path.read_text(encoding="utf-8") == "Dear Ada"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for fields in ({"prompts": True}, {"answers": True}, {"limit_mb": 5.0}):
        with pytest.raises(BadInputError, match="--record FILE"):
            make_recording(None, **{"prompts": False, "answers": False, "limit_mb": None} | fields)
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(BadInputError, match="more than 0"):
            make_recording(path, prompts=False, answers=False, limit_mb=limit)
    made = make_recording(path, prompts=False, answers=True, limit_mb=None)
    assert made is not None
    assert (made.prompts, made.answers) == (True, True)


def test_at_its_limit_recording_stops_and_serving_goes_on(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "record.jsonl"
    with recorded(folder, tokenizer, path, limit_mb=0.001) as endpoint:
        for _ in range(8):
            ask(endpoint, "/completions", TEXT)
    assert 1 <= len(lines(path)) < 8
    assert path.stat().st_size <= 1000
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [f"The record {path} has reached its limit of 0.001 MB. Recording has stopped; serving goes on."]


def test_on_a_full_disk_recording_stops_with_whole_lines_and_serving_goes_on(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        path = disk / "record.jsonl"
        with recorded(folder, tokenizer, path) as endpoint:
            for _ in range(40):
                ask(endpoint, "/completions", TEXT)
        found = path.read_bytes()
    assert found.endswith(b"}\n")
    assert 1 <= len([json.loads(line) for line in found.splitlines()]) < 40
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        f"The record {path} can't be written: no space left on device. Recording has stopped; serving goes on."
    ]


def test_a_disk_that_hangs_holds_nobody_up(
    folder: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "record.jsonl"
    hang = threading.Event()
    write = module._write_whole

    def hanging(handle: int, data: bytes, start: int) -> None:
        assert hang.wait(60)
        write(handle, data, start)

    monkeypatch.setattr(module, "_write_whole", hanging)
    monkeypatch.setattr(module, "MOST_PENDING_BYTES", 3 * module.LINE_BYTES)
    recorder = Recorder(Recording(path))
    with closing(recorder), faked(folder, tokenizer, recorder=recorder) as endpoint:
        for _ in range(6):
            ask(endpoint, "/completions", TEXT)
        until(lambda: recorder.left_out == 3)
        assert "as fast as requests end" in caplog.text
        assert lines(path) == []
        hang.set()
        written(path, 3)
        ask(endpoint, "/completions", TEXT)
    assert len(lines(path)) == 4
    assert caplog.records[-1].getMessage() == f"3 requests were left out of the record {path}."


def serving(folder: Path, path: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quicksilver.serve", "--engine", "fake", "--artifact", str(folder), "--port", "0"]
    command += ["--record", str(path), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=path.parent)


def test_a_server_s_process_records_until_it_ends(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with serving(folder, path, "--record-prompts") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = json.loads(process.stdout.readline())["port"]

        def answered() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/v1/chat/completions", json.dumps(CHAT))
            return connection.getresponse().status == 200

        until(answered)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
        assert process.wait(30) == 0
    assert "THIS SERVER RECORDS THE PROMPTS OF ALL REQUESTS" in said
    (line,) = lines(path)
    assert line["messages"] == CHAT["messages"]


def test_a_record_that_can_t_be_written_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--record-answers") as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(30) == 2
    assert said == f"error: The record {tmp_path} can't be written: is a directory.\n"
