"""Reports: predictions and measurements as they stand in files, ours and AIPerf's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quicksilver.errors import BadInputError
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.pairing import Measured
from quicksilver.nouns.prediction import Prediction
from quicksilver.nouns.result import Result
from quicksilver.nouns.score import Speed

WEIGHTS = {"int8": "int8", "w8a8": "int8", "int4": "int4", "awq": "int4", "gptq": "int4", "fp8": "fp8"}
"""What techniques make of weights, in a plan's words."""


def predictions(path: Path) -> list[Prediction]:
    """Return all predictions of a JSON document: of one prediction or of a plan, whatever it is wrapped in.

    Raises BadInputError if the file can't be read or holds none.
    """
    found = list(_predictions(_json(path)))
    if not found:
        raise BadInputError(f"{path} holds no prediction; give what `quicksilver plan --json` printed.")
    return found


def measurements(path: Path) -> list[Measured]:
    """Return what a report measured, a closed loop each: of `quicksilver bench --json`, result.json or AIPerf's export.

    Raises BadInputError if it is none of these, was cut short, or holds no closed loop that answered.
    """
    document = _json(path)
    if not isinstance(document, dict):
        raise _no_report(path)
    try:
        if "input_config" in document:
            found = [_aiperf(document)]
        elif "candidates" in document:
            found = list(_result(Result.model_validate(document)))
        elif "speeds" in document:
            found = list(_benchmark(Benchmark.model_validate(document)))
        else:
            raise _no_report(path)
    except (ValidationError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInputError(f"{path} isn't a whole report: {_first(error)}.") from error
    if not found:
        raise BadInputError(f"{path} measured no closed loop whose requests were answered.")
    return found


def measured_of(
    speed: Speed, *, model: str, report: str, machine: str = "", weights: str = "", date: str = ""
) -> Measured | None:
    """Return what a Speed says; None for an open loop, a ramp, an invalid load or one without answers."""
    if speed.load or speed.arrivals != "closed" or not speed.valid or speed.requests == speed.errors:
        return None
    if not (speed.tokens_per_s.value > 0 and speed.prompt_tokens_p50 > 0 and speed.completion_tokens_p50 > 0):
        return None
    return Measured(
        model=model,
        input_tokens=speed.prompt_tokens_p50,
        output_tokens=speed.completion_tokens_p50,
        streams=speed.concurrency,
        tokens_per_s=speed.tokens_per_s.value,
        ttft_ms=speed.ttft_ms.p50 or None,
        itl_ms=speed.tpot_ms.p50 or None,
        requests=speed.requests - speed.errors,
        machine=machine,
        weights=weights,
        report=report,
        date=date,
    )


def weights_of(techniques: Sequence[str]) -> str:
    """Return in a plan's words what a stack of techniques makes of the weights, and nothing else; else an empty string."""
    names = [name for name in techniques if name != "as-is"]
    if any(name not in WEIGHTS for name in names):
        return ""
    found = {WEIGHTS[name] for name in names} or {"bf16"}
    return found.pop() if len(found) == 1 else ""


def techniques_of(label: str) -> list[str]:
    """Return the names in an artefact's label, such as `int8 + prompt-lookup(tokens=4)`."""
    return [part.partition("(")[0] for part in label.split(" + ")]


def _name(technique: Any) -> str:
    if isinstance(technique, str):
        return technique
    return str(technique.get("technique", "")) if isinstance(technique, Mapping) else ""


def _benchmark(found: Benchmark) -> Iterator[Measured]:
    for speed in found.speeds:
        one = measured_of(speed, model=found.model, report="quicksilver bench", date=found.created)
        if one is not None:
            yield one


def _result(found: Result) -> Iterator[Measured]:
    for candidate in found.candidates:
        # Of others, such as those that speculate, a layout can't be told from the recipe alone.
        weights = weights_of([_name(each) for each in candidate.recipe.get("techniques", [])])
        for speed in candidate.score.speed:
            one = measured_of(
                speed,
                model=found.model,
                report="quicksilver optimize",
                machine=found.hardware.cpu,
                weights=weights,
                date=found.created,
            )
            if one is not None and weights:
                yield one


def _aiperf(document: Mapping[str, Any]) -> Measured:
    """Read AIPerf's profile_export_aiperf.json: of schema 1.4, or of the versions before it that had no schema."""
    if document.get("was_cancelled"):
        raise BadInputError("The report's run was cancelled, so its figures aren't of a whole load.")
    config = document["input_config"]
    if "models" in config:
        model = config["models"]["items"][0]["name"]
        phase = next(each for each in config["phases"] if each.get("name", "profiling") == "profiling")
        streams = phase.get("concurrency")
    else:
        model = config["endpoint"]["model_names"][0]
        streams = config["loadgen"].get("concurrency")
    if not isinstance(streams, int):
        raise BadInputError(
            "The report is of an open loop; a prediction is compared with a closed one (--concurrency)."
        )

    def value(name: str, statistic: str) -> float | None:
        return None if name not in document else float(document[name][statistic])

    return Measured.model_validate(
        {
            "model": model,
            "input_tokens": value("input_sequence_length", "avg"),
            "output_tokens": value("output_sequence_length", "avg"),
            "streams": streams,
            "tokens_per_s": value("output_token_throughput", "avg"),
            "ttft_ms": value("time_to_first_token", "p50"),
            "itl_ms": value("inter_token_latency", "p50"),
            "requests": int(value("request_count", "avg") or 0),
            "report": "AIPerf",
            "date": str(document.get("end_time", "")),
        }
    )


def _predictions(value: Any) -> Iterator[Prediction]:
    if isinstance(value, dict):
        if value.get("source") == "predicted" and "layout" in value and "load" in value:
            try:
                yield Prediction.model_validate(
                    {name: v for name, v in value.items() if name in Prediction.model_fields}
                )
            except ValidationError as error:
                raise BadInputError(f"A prediction isn't whole: {_first(error)}.") from error
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _predictions(each)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise BadInputError(f"There is no file {path}.") from error
    except OSError as error:
        raise BadInputError(f"{path} can't be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is not a JSON document.") from error


def _no_report(path: Path) -> BadInputError:
    return BadInputError(
        f"{path} is no report; give what `quicksilver bench --json` printed, a run's result.json, or AIPerf's "
        "profile_export_aiperf.json."
    )


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
