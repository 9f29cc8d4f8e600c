"""vLLM's arguments as names and values: read from the command line that our engine makes, and written as one again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

FRONTEND = frozenset(
    {
        "allow-credentials", "allowed-headers", "allowed-methods", "allowed-origins", "anthropic-disabled-thinking-effort", "api-key",
        "api-server-count", "chat-template", "chat-template-content-format", "cohere-format", "cohere-is-reasoning-model",
        "data-parallel-supervisor-port", "default-chat-template-kwargs", "disable-access-log-for-endpoints", "disable-fastapi-docs",
        "disable-uvicorn-access-log", "dp-supervisor-probe-failure-threshold", "dp-supervisor-probe-interval-s",
        "dp-supervisor-probe-timeout-s", "enable-auto-tool-choice", "enable-flash-late-interaction", "enable-force-include-usage",
        "enable-log-deltas", "enable-log-outputs", "enable-offline-docs", "enable-per-request-metrics", "enable-prompt-tokens-details",
        "enable-request-id-headers", "enable-scale-out", "enable-server-load-tracking", "enable-ssl-refresh",
        "enable-tokenizer-info-endpoint", "exclude-tools-when-tool-choice-none", "fingerprint-mode", "fingerprint-value", "grpc",
        "grpc-port", "h11-max-header-count", "h11-max-incomplete-event-size", "headless", "host", "log-config-file", "log-error-stack",
        "lora-modules", "max-log-len", "middleware", "port", "response-role", "return-tokens-as-token-ids", "root-path", "shutdown-timeout",
        "sse-keep-alive-interval", "ssl-ca-certs", "ssl-cert-reqs", "ssl-certfile", "ssl-ciphers", "ssl-keyfile", "tokens-only",
        "tool-call-parser", "tool-parser-plugin", "tool-server", "tool-strict-level", "trust-request-chat-template",
        "trust-request-mm-kwargs", "uds", "uvicorn-log-level",
    }
)  # fmt: skip
"""Arguments of vLLM's HTTP server and not of its engine (`FrontendArgs`, and what `vllm serve` adds); a test compares it with vLLM's own."""

Options = Mapping[str, Any]
"""Names without their dashes before; a value is True or False, a number, a text, a dict, or a list of texts."""


def read(words: Sequence[str]) -> dict[str, Any]:
    """Read a command line of long options: `--name`, `--no-name`, `--name value…` or `--name=value`. Raises ValueError."""
    found: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            name = key.replace("_", "-")
            if separator:
                found[name], name = _value(value), None
            elif name.startswith("no-"):
                found[name[3:]], name = False, None
            else:
                found[name] = True
        elif name is None:
            raise ValueError(f"{word!r} belongs to no option")
        elif found[name] is True:
            found[name] = _value(word)
        else:
            before = found[name] if isinstance(found[name], list) else [_word(found[name])]
            found[name] = [*before, word]
    return found


def write(options: Options) -> list[str]:
    """Write options as the words of a command line that `read` reads back."""
    words: list[str] = []
    for name, value in options.items():
        if value is False:
            words.append(f"--no-{name}")
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += value
        elif value is not True:
            text = _word(value)
            words[-1:] = [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return words


def command(words: Sequence[str], options: Options) -> str:
    """Write a command for a shell, an option a line."""
    lines = [shlex.join(words)]
    for name, value in options.items():
        lines.append("    " + shlex.join(write({name: value})))
    return " \\\n".join(lines) + "\n"


def underscored(options: Options) -> dict[str, Any]:
    """Return options by the names of vLLM's Python arguments."""
    return {name.replace("-", "_"): value for name, value in options.items()}


def _value(text: str) -> Any:
    """Read one value: a JSON object, a whole or decimal number that is written back alike, else the text."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            return text
        return found if isinstance(found, dict) else text
    for kind in (int, float):
        if re.fullmatch(r"-?[0-9][0-9.e+-]*", text):
            try:
                number = kind(text)
            except ValueError:
                continue
            if str(number) == text:
                return number
    return text


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
