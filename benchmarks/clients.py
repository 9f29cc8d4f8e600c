"""Clients of others, unmodified, against a served model: `make clients`. The last line of stdout is JSON; 1 if one failed.

Serves SmolLM2-135M with --real, else a tiny model on the fake engine: enough to see that each client is understood.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksilver import Recipe, api
from quicksilver.engines.fake import Fake
from quicksilver.nouns import Settings
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model
from stamp import stamp

ROOT = Path(__file__).parents[1]
REQUESTS = 16
MODEL = "smollm2-135m-instruct"
READ_EXPORT = """
import pathlib, sys
from aiperf.common.models.export_models import JsonExportData
found = JsonExportData.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes())
assert found.schema_version == JsonExportData.SCHEMA_VERSION, found.schema_version
assert found.inter_token_latency.p50 and found.request_throughput.avg and found.input_config.phases
"""


@dataclass(frozen=True, slots=True)
class Served:
    """What the clients are told: where the server is, its model's name, and a folder with the tokenizer."""

    url: str
    model: str
    tokenizer: Path
    folder: Path
    """For what the clients write."""
    clients: Path
    """The environment of all clients but AIPerf."""
    aiperf: Path

    def run(self, *command: str | Path) -> str:
        """Run a client and return what it printed. Raises CalledProcessError if it fails."""
        print("$", *command, file=sys.stderr)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=600).stdout


def curl(served: Served) -> dict[str, Any]:
    """A stream, as curl gets it."""
    body = json.dumps({"messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 20, "stream": True})
    head = ("--fail-with-body", "--silent", "--no-buffer", "--header", "Content-Type: application/json")
    lines = served.run("curl", *head, f"{served.url}/chat/completions", "--data", body).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""], lines
    return {"events": len(lines) - 2}


def langchain(served: Served) -> dict[str, Any]:
    """Invoke, stream, tools and structured output."""
    said = served.run(served.clients / "bin/python", ROOT / "examples/langchain_chat.py", served.url, served.model)
    return {"said": said.strip()}


def guidellm(served: Served) -> dict[str, Any]:
    """A benchmark of synthetic prompts."""
    out = served.folder / "guidellm.json"
    served.run(
        served.clients / "bin/guidellm", "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target={served.url.removesuffix('/v1')}",
        "--tokenizer", f"kind=huggingface_auto,model={served.tokenizer}",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--output", f"kind=json,path={out}",
    )  # fmt: skip
    metrics = json.loads(out.read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert totals["successful"] == totals["total"] == REQUESTS, totals
    assert metrics["output_token_count"]["successful"]["mean"] == 32
    return {"requests": totals["successful"], "errors": totals["errored"]}


def aiperf(served: Served) -> dict[str, Any]:
    """A benchmark of synthetic prompts."""
    served.run(
        served.aiperf / "bin/aiperf", "profile", "--ui", "simple", "--streaming", "--endpoint-type", "chat",
        "--url", served.url.removesuffix("/v1"), "--model", served.model, "--tokenizer", served.tokenizer,
        "--concurrency", "4", "--request-count", str(REQUESTS), "--isl", "64", "--osl", "32",
        "--extra-inputs", "ignore_eos:true", "--artifact-dir", served.folder / "aiperf",
    )  # fmt: skip
    found = json.loads((served.folder / "aiperf/profile_export_aiperf.json").read_text(encoding="utf-8"))
    assert found["request_count"]["avg"] == REQUESTS, found["request_count"]
    assert not found["error_summary"], found["error_summary"]
    assert found["usage_completion_tokens"]["avg"] == 32
    # What we export in AIPerf's form, AIPerf's own model has to take.
    served.run(served.aiperf / "bin/python", "-c", READ_EXPORT, ROOT / "tests/golden/profile_export_aiperf.json")
    return {"requests": REQUESTS, "errors": 0}


def lm_eval(served: Served) -> dict[str, Any]:
    """Log-likelihoods of continuations."""
    arguments = {
        "base_url": f"{served.url}/completions", "model": served.model, "tokenizer": served.tokenizer,
        "tokenizer_backend": "huggingface", "num_concurrent": 4,
    }  # fmt: skip
    served.run(
        served.clients / "bin/lm_eval", "run", "--model", "local-completions",
        "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()),
        "--include_path", "examples/lm_eval", "--tasks", "capitals", "--output_path", served.folder / "lm_eval",
    )  # fmt: skip
    (path,) = (served.folder / "lm_eval").rglob("results_*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["n-samples"]["capitals"]["effective"] == 16
    accuracy = found["results"]["capitals"]["acc,none"]
    # One in four by chance: a model that can read knows more, and one of random weights has nothing to say.
    assert accuracy >= 0.5 or served.model == "tiny", accuracy
    return {"questions": 16, "accuracy": accuracy}


CLIENTS: tuple[Callable[[Served], dict[str, Any]], ...] = (curl, langchain, guidellm, aiperf, lm_eval)


def main() -> int:
    """Serve, and run each client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=Path, default=ROOT / ".venv-clients", help="environment of envs/clients.lock")
    parser.add_argument("--aiperf", type=Path, default=ROOT / ".venv-aiperf", help="environment of envs/aiperf.lock")
    parser.add_argument("--only", choices=[client.__name__ for client in CLIENTS], action="append")
    parser.add_argument("--real", action="store_true", help="serve SmolLM2-135M in INT8")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.real:
            artifact = api.build(Recipe(MODEL, [make("int8"), make("prompt-lookup")]))
            tokenizer = artifact.path
        else:
            tokenizer = make_tiny_model(folder / "tiny")
        serving = api.serving(str(tokenizer)) if options.real else Fake().serve(tokenizer, Settings())
        with serving as endpoint:
            places = options.clients.absolute(), options.aiperf.absolute()
            served = Served(endpoint.url, endpoint.model, tokenizer, folder, *places)
            for client in CLIENTS:
                if options.only and client.__name__ not in options.only:
                    continue
                try:
                    found[client.__name__] = client(served)
                except (subprocess.SubprocessError, AssertionError, OSError) as error:
                    print(f"{client.__name__} failed: {error}", file=sys.stderr)
                    failed.append(client.__name__)
    model = MODEL if options.real else "tiny"
    print(json.dumps({"benchmark": "clients", "model": model, "clients": found, "failed": failed} | stamp()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
