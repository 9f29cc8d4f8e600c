"""A long day for the endpoint in a few minutes: 10,000 requests, good, malformed, cancelled, and in bursts. The last line is JSON.

Fails if a 5xx comes that isn't a deliberate 503, if a sequence or a block of the KV cache is left behind, or if the memory of the
server's processes moves by more than 5 % over the last half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from quicksilver.api import build
from quicksilver.engines import find
from quicksilver.nouns import Endpoint
from quicksilver.recipes import load_recipe
from stamp import stamp

AT_ONCE = 48
"""Requests that are out at the same time, bursts apart."""
BURST = 200
SETTLE_S = 60.0
WORDS = ("river", "Oslo", "physics", "who", "wrote", "the", "seven", "seas", "été", "日本", "why", "and", "42", "\n")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}


def main() -> int:
    """Run, print what came of it, and return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    artifact = build(load_recipe(options.recipe))
    begun = time.monotonic()
    with find(artifact.engine).serve(artifact.path, artifact.settings) as endpoint:
        document = asyncio.run(Soak(endpoint, options.requests).run())
    document |= {"benchmark": "soak", "recipe": artifact.label, "minutes": round((time.monotonic() - begun) / 60, 1)}
    print(json.dumps(document | stamp()))
    return 1 if document["faults"] else 0


class Soak:
    """The requests of one run, and what came of them."""

    def __init__(self, endpoint: Endpoint, requests: int) -> None:
        self.requests = requests
        self.host, port = endpoint.url.removeprefix("http://").removesuffix("/v1").split(":")
        self.port = int(port)
        self.server = psutil.Process(endpoint.pid)
        self.random = random.Random(0)
        self.statuses: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("good", "malformed", "cancelled", "burst")
        }
        self.faults: list[str] = []
        self.memory_mb: list[float] = []
        self.done = 0

    async def run(self) -> dict[str, Any]:
        """Send all of it, and return the figures."""
        kinds = ["malformed"] * (self.requests * 3 // 20) + ["cancelled"] * (self.requests * 3 // 20)
        bursts = 4 * ["burst"]
        kinds += ["good"] * (self.requests - len(kinds) - BURST * len(bursts))
        self.random.shuffle(kinds)
        for number in range(len(bursts)):
            kinds.insert((number + 1) * len(kinds) // (len(bursts) + 1), "burst")
        watching = asyncio.create_task(self._watch())
        slots = asyncio.Semaphore(AT_ONCE)
        tasks: set[asyncio.Task[None]] = set()
        for kind in kinds:
            count = BURST if kind == "burst" else 1
            if kind != "burst":
                await slots.acquire()
            for _ in range(count):
                task = asyncio.create_task(self._one(kind))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                if kind != "burst":
                    task.add_done_callback(lambda _: slots.release())
        await asyncio.gather(*tasks)
        left = await self._settled()
        watching.cancel()
        half = self.memory_mb[len(self.memory_mb) // 2 :]
        middle = sorted(half)[len(half) // 2]
        moved = max(abs(value - middle) for value in half) / middle
        if moved > 0.05:
            self.faults.append(f"memory moved by {moved:.1%} over the last half")
        return {
            "requests": self.done,
            "statuses": {kind: dict(counts.most_common()) for kind, counts in self.statuses.items()},
            "left_behind": left,
            "memory_mb": {"median": middle, "moved": moved, "lowest": min(self.memory_mb)},
            "faults": self.faults,
        }

    async def _one(self, kind: str) -> None:
        target, body = self._malformed() if kind == "malformed" else self._good(kind)
        try:
            status, said = await self._send(target, body, self.random.uniform(0, 0.6) if kind == "cancelled" else None)
        except OSError as error:
            status, said = type(error).__name__, str(error)
        self.statuses[kind][status] += 1
        wrong = (status.startswith("5") and status != "503") or (kind == "malformed" and status == "200")
        if wrong or not (status.isdigit() or kind == "cancelled") or (kind == "good" and status not in ("200", "429")):
            self.faults.append(f"{kind}: {status}: {said[-300:]} to {body[:200]!r}")
        self.done += 1
        if self.done % 500 == 0:
            print(f"{self.done} of {self.requests}, {self.memory_mb[-1]:.0f} MB", file=sys.stderr)

    async def _send(self, target: str, body: bytes, leave_s: float | None) -> tuple[str, str]:
        """Return the status and what was said; "left" if it left before the answer was whole."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = f"POST {target} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            if leave_s is None:
                said = await reader.read(-1)
            else:
                try:
                    said = await asyncio.wait_for(reader.read(-1), leave_s)
                except TimeoutError:
                    return "left", ""
        finally:
            writer.close()
        if not said:
            return "closed", ""
        text = said.decode(errors="replace")
        if b"text/event-stream" in said and not said.rstrip().endswith((b"data: [DONE]", b"0")):
            return "cut", text
        return text.split(" ", 2)[1], text

    def _good(self, kind: str) -> tuple[str, bytes]:
        draw = self.random
        words = " ".join(draw.choices(WORDS, k=draw.choice((3, 10, 40, 400 if kind == "cancelled" else 60))))
        body: dict[str, Any] = {
            "max_tokens": draw.choice((1, 4, 8, 200 if kind == "cancelled" else 12)),
            "stream": draw.random() < 0.5,
        }
        body |= draw.choice(
            (
                {},
                {"temperature": 0},
                {"seed": 1, "temperature": 0.8},
                {"stop": ["e", "the"]},
                {"n": 2},
                {"logprobs": True},
            )
        )
        if draw.random() < 0.3:
            body.pop("logprobs", None)
            return "/v1/completions", json.dumps(body | {"prompt": words}).encode()
        if draw.random() < 0.1:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        return "/v1/chat/completions", json.dumps(body | {"messages": [{"role": "user", "content": words}]}).encode()

    def _malformed(self) -> tuple[str, bytes]:
        draw = self.random
        messages = [{"role": "user", "content": "a"}]
        bad: list[Any] = [
            {"messages": messages, "temperature": "hot"},
            {"messages": messages, "max_tokens": -1},
            {"messages": messages, "model": "nobody"},
            {"messages": messages, "nonsense": 1},
            {"messages": messages, "n": 10**30},
            {"messages": messages, "stop": ["x"] * 1000},
            {"messages": messages, "logit_bias": {"99999999": 1}},
            {"messages": messages, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}},
            {"messages": [{"role": "cook", "content": "a"}]},
            {"messages": []},
            {"messages": [{"role": "user", "content": "a " * 60_000}]},
            [],
            None,
        ]  # fmt: skip
        kind = draw.randrange(5)
        if kind == 0:
            whole = json.dumps({"messages": messages}).encode()
            return "/v1/chat/completions", whole[: draw.randrange(len(whole) - 1)]
        if kind == 1:
            return "/v1/completions", b'{"prompt": "\xff\xfe", "max_tokens": 1}'
        if kind == 2:
            return "/v1/completions", b'{"prompt": "a", "temperature": NaN}'
        if kind == 3:
            return "/v1/chat/completions", b"[" * draw.randrange(1, 50_000)
        return "/v1/chat/completions", json.dumps(draw.choice(bad)).encode()

    async def _watch(self) -> None:
        while True:
            family = [self.server, *self.server.children(recursive=True)]
            self.memory_mb.append(sum(process.memory_info().rss for process in family) / 1e6)
            await asyncio.sleep(1)

    async def _settled(self) -> dict[str, float]:
        """Wait until nothing runs, and return what is left of sequences and cache."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            text = (await reader.read(-1)).decode()
            writer.close()
            names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            left = {name: float(re.findall(rf"^vllm:{name}{{.*}} (\S+)", text, re.MULTILINE)[0]) for name in names}
            if not any(left.values()):
                return left
            if time.monotonic() > deadline:
                self.faults.append(f"left behind: {left}")
                return left
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
