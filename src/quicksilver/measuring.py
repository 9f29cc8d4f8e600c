"""The part of the Python API that measures endpoints or compares them, and what opens one: a URL, an artefact, a run or a key of the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quicksilver.build import build as building
from quicksilver.errors import BadInputError, EngineError, QuicksilverError
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.comparison import Comparison
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.workload import Workload
from quicksilver.search.events import Event

log = logging.getLogger(__name__)

Progress = Callable[[Event], None]
MANY_PROMPTS = 2000


def benchmark(
    target: str,
    workload: str | Path = "hotpotqa",
    *,
    streams: Sequence[int] | None = None,
    rate: Sequence[float] | None = None,
    arrivals: str | None = None,
    ramp: str | None = None,
    trace: Path | None = None,
    prompts: int | None = None,
    rounds: int = 1,
    repeat_prompts: bool = False,
    steady_only: bool = False,
    slo: str | None = None,
    most_streams: int = 256,
    model: str | None = None,
    api_key_env: str | None = None,
    price_per_hour: float | None = None,
    instance: str | None = None,
    discount: float = 0.0,
    input_output_ratio: float = 3.0,
    out: Path | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Benchmark:
    """Measure an endpoint (a URL), an artefact or a run's winner under a workload's prompts.

    `streams` are closed loops, one after the other (1 and 8 if nothing is said); `rate` requests a second, sent at moments of
    their own whatever the server does; `arrivals` "closed", "poisson", "constant" or "trace"; `ramp` "1:8" or "1:8:4" (in four
    steps), of streams or of a rate; `trace` a file of moments (seconds, one a line), without which a trace takes the prompts'
    own. Each prompt is sent once in all, the first to warm up, unless `repeat_prompts` is set; with `steady_only` what comes
    before a load's steady state isn't counted. With an `slo`, such as `ttft_p95<500ms,errors<0.1%`, and no load, the highest
    load up to `most_streams` that meets it is looked for (with arrivals "poisson", the highest rate), and the same call goes on
    with a search that was killed or whose server died; with a load goodput is counted under it. Raises QuicksilverError.
    """
    from quicksilver.bench import measure
    from quicksilver.bench.highest import find_highest
    from quicksilver.bench.price import price as make_price
    from quicksilver.bench.schedule import loads
    from quicksilver.bench.slo_search import check as can_be_searched
    from quicksilver.bench.slo_search import rates
    from quicksilver.bench.slo_search import streams as up_to
    from quicksilver.engines.remote import connect
    from quicksilver.hardware import detect
    from quicksilver.nouns.slo import Slo

    if not target.startswith(("http://", "https://")):
        runnable(target)
    wanted = Slo.parse(slo) if slo is not None else None
    # Without a rate, open arrivals and an SLO ask for the highest rate that meets it.
    searching_rates = wanted is not None and arrivals == "poisson" and not (streams or rate or ramp or trace)
    kind = None if searching_rates else arrivals
    given = loads(streams=streams, rates=rate, kind=kind, ramp=ramp, trace=trace, seed=seed)
    searching = wanted is not None and given is None
    if wanted is not None and searching:
        can_be_searched(wanted)
        if most_streams < 1 or rounds != 1:
            raise BadInputError("The search for an SLO has at least one stream to try, and one round.")
    price = make_price(price_per_hour, instance, discount, input_output_ratio, cores=detect().cores)
    if searching:
        load = many_prompts(str(workload), prompts, seed)
    else:
        replayed = arrivals == "trace" and trace is None
        if replayed and rounds != 1:
            raise BadInputError("A recorded trace is replayed in one round, or it would come in parts.")
        load = workload_of(str(workload), prompts, seed, (1, 8) if streams is None else streams, trace=replayed)
        given = given or loads(streams=load.concurrencies)
        # What can't be is said before a server is started.
        measure.plan(load, given or (), rounds, repeat=repeat_prompts)
    tell = progress or silent
    # Another search has other looks: it doesn't go on from those of this one.
    looked_for = [target, model, str(wanted), searching_rates, most_streams, repeat_prompts] if searching else []
    key = content_hash([load.hash, *(each.hash for each in given or ()), *looked_for])
    file = (out or Path("runs") / "bench") / f"samples-{key}.jsonl"
    words: dict[str, object] = {
        "streams": streams,
        "rate": rate,
        "arrivals": arrivals,
        "ramp": ramp,
        "trace": trace,
        "slo": slo,
    }
    words |= {
        "prompts": prompts,
        "rounds": rounds if rounds > 1 else None,
        "repeat_prompts": repeat_prompts,
        "seed": seed,
    }
    more = "".join(f", {name}={value!r}" for name, value in words.items() if value)
    command = command or f"quicksilver.benchmark({target!r}, {str(workload)!r}{more})"
    found: Benchmark | None = None

    def run(endpoint: Endpoint, tools: Mapping[str, str]) -> Benchmark:
        if wanted is not None and searching:
            return find_highest(
                endpoint,
                load,
                wanted,
                price=price,
                samples=file,
                loads=rates() if searching_rates else up_to(most_streams),
                repeat_prompts=repeat_prompts,
                target=target,
                command=command,
                tools=tools,
                on_progress=lambda text, done, total, left: tell(Event("slo", text, done, total, left)),
            )
        return measure.measure(
            endpoint,
            load,
            arrivals=given,
            price=price,
            samples=file,
            rounds=rounds,
            repeat_prompts=repeat_prompts,
            steady_only=steady_only,
            slo=wanted,
            target=target,
            command=command,
            tools=tools,
            on_progress=lambda text, done, total: tell(Event("bench", text, done, total)),
        )

    if target.startswith(("http://", "https://")):
        found = run(connect(target, model, api_key_env), {})
    else:
        try:
            with serving(target) as endpoint:
                found = run(endpoint, building.tools(find_artifact(target).engine))
            _meet(found, find_artifact(target))
        except EngineError as error:
            # A server that died while it was measured: what came before is kept.
            if found is None or not found.answered:
                raise
            found = found.model_copy(update={"notes": (*found.notes, str(error))})
    if not found.answered and found.search is None:
        kinds = {kind for speed in found.speeds for kind in speed.errors_by_kind}
        asked = sum(speed.requests for speed in found.speeds)
        raise EngineError(f"{target} answered none of {asked} requests ({', '.join(sorted(kinds))}); see {file}.")
    return found


def _meet(found: Benchmark, artifact: Artifact) -> None:
    """Put what was measured beside what was predicted of this machine, where that is the same for sure."""
    from quicksilver.planner import record, reports

    weights = reports.weights_of(reports.techniques_of(artifact.label))
    for speed in found.speeds if weights else ():
        measured = reports.measured_of(
            speed,
            model=artifact.model,
            report="quicksilver bench",
            machine=found.hardware.cpu,
            weights=weights,
            date=found.created,
        )
        try:
            met = None if measured is None else record.meet(measured)
        except QuicksilverError as error:  # what was measured is worth more than the record of predictions
            log.warning("%s", error)
            return
        if met is not None:
            log.info(
                "%.1f tokens/s were predicted of this load at %d streams: %.1f %% off.",
                met.prediction.tokens_per_s,
                speed.concurrency,
                met.error_percent,
            )


def compare(
    as_is: str,
    candidate: str,
    workload: str | Path = "hotpotqa",
    *,
    prompts: int | None = None,
    max_quality_loss: float = 1.0,
    max_task_loss: float | None = None,
    metric: str | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    judge_key_env: str | None = None,
    lm_eval: Sequence[str] = (),
    include_path: Path | None = None,
    lm_eval_limit: int | None = None,
    tokenizer: Path | str | None = None,
    streams: int = 4,
    models: tuple[str | None, str | None] = (None, None),
    api_key_env: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Hold a candidate against the model as it is, by the quality gate and without a search.

    Both are the URL of a server, an artefact, a run's winner or a key of the store; `models` are their names on servers that have several.
    `lm_eval` are tasks (TASK or TASK:METRIC) that lm-eval runs itself, from the environment lmeval; `include_path` is a folder with tasks of
    one's own, `lm_eval_limit` samples are taken of each, and `tokenizer` is the one of the model of a URL. Raises QuicksilverError, one clear sentence.
    """
    from quicksilver.bench import metrics
    from quicksilver.bench.judge import Judge
    from quicksilver.bench.lm_eval import harness
    from quicksilver.bench.versus import Versus
    from quicksilver.engines.remote import connect

    begun = time.monotonic()
    goal = goal_of(max_quality_loss=max_quality_loss, max_task_loss=max_task_loss)
    for target in (as_is, candidate):
        if not target.startswith(("http://", "https://")):
            runnable(target)
    load = workload_of(str(workload), prompts, seed, None)
    if streams < 1 or not load.evaluation:
        raise BadInputError("A comparison needs at least one stream and one prompt.")
    scored_by = metrics.chosen(metric, load, needed=max_task_loss is not None and judge is None)
    tasks = [harness(spec, include=include_path, limit=lm_eval_limit, streams=streams) for spec in lm_eval]
    tokenizers = _tokenizers((as_is, candidate), tokenizer) if tasks else ("", "")
    folder = out or Path("runs") / "compare" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    judging = connect(judge, judge_model, judge_key_env) if judge is not None else None
    tell = progress or silent
    # What is wrong with either is better known before the first has been read.
    both = [opened(target, name, api_key_env) for target, name in zip((as_is, candidate), models, strict=True)]
    versus = Versus(
        load,
        goal,
        scored_by,
        folder,
        streams=streams,
        judge=Judge(judging, folder / "verdicts.jsonl") if judging is not None else None,
        harnesses=tasks,
        tokenizers=tokenizers,
        on_progress=lambda what, done, total: tell(Event("compare", what, done, total)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command or f"quicksilver.api.compare({as_is!r}, {candidate!r}, {str(workload)!r})",
        as_is=as_is,
        candidate=candidate,
        workload=load.name,
        goal=goal,
        quality=versus.compare(*both),
        remarks=tuple(versus.remarks),
        seconds=round(time.monotonic() - begun, 1),
    )


def _tokenizers(targets: tuple[str, str], given: Path | str | None) -> tuple[Path | str, Path | str]:
    """Return what lm-eval splits the prompts of two targets with: the artefacts' own. Raises BadInputError for a URL without."""

    def one(target: str) -> Path | str:
        if given is not None:
            return given
        if target.startswith(("http://", "https://")):
            raise BadInputError(
                f"lm-eval splits prompts into tokens itself; name the tokenizer of the model at {target} with --tokenizer FOLDER."
            )
        return find_artifact(target).path

    return one(targets[0]), one(targets[1])


def goal_of(**limits: Any) -> Goal:
    """Make a goal. Raises BadInputError."""
    try:
        return Goal(**limits)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"{first['loc'][0]} can't be {first['input']!r}: {first['msg']}.") from error


@contextmanager
def serving(target: str, *, port: int = 0) -> Iterator[Endpoint]:
    """Serve an artefact, a run's winner or an object of the store on loopback until the context ends."""
    from quicksilver import engines

    artifact = find_artifact(target)
    with engines.find(artifact.engine).serve(artifact.path, artifact.settings, port=port) as endpoint:
        yield endpoint


def find_artifact(target: str) -> Artifact:
    """Return the artefact at a folder (an artefact's or a run's), of a key in the store, or of a model's chosen preset.

    Raises BadInputError.
    """
    from quicksilver.build import store

    path = Path(target).expanduser()
    try:
        if path.exists() or "/" in target:
            return Artifact.open(path)
        return Artifact.open(store.path(store.resolve(target)))
    except BadInputError:
        from quicksilver.search import presets as kept

        found = kept.instead(target)
        if found is None:
            raise
        return found


def runnable(target: str) -> Artifact:
    """Return an artefact whose engine is installed: what `find_artifact` finds. Raises EngineError, which says what to install."""
    from quicksilver import engines

    artifact = find_artifact(target)
    engines.installed(artifact.engine)
    return artifact


def made_elsewhere(artifact: Artifact) -> str | None:
    """Say that an artefact was made and measured on a CPU with instructions that this one lacks; None for one that wasn't."""
    from quicksilver.hardware import instructions, named

    lacks = [name for name in named(artifact.target.get("isa", "")) if name not in instructions()]
    if not lacks:
        return None
    return (
        f"{artifact.label} was made on a machine with {', '.join(lacks)}, which this one lacks: it will be slower here than it was there; "
        "`quicksilver optimize` finds what is best on this one."
    )


def opened(target: str, model: str | None, api_key_env: str | None) -> AbstractContextManager[Endpoint]:
    """Return what serves a target while it is open, or the server that runs already. Raises as `connect` and `find_artifact` do."""
    from quicksilver.engines.remote import connect

    if target.startswith(("http://", "https://")):
        return nullcontext(connect(target, model, api_key_env))
    runnable(target)
    return serving(target)


def workload_of(
    spec: str, prompts: int | None, seed: int, streams: Sequence[int] | None, *, trace: bool = False
) -> Workload:
    """Load a workload, under some concurrencies if any are given. Raises BadInputError."""
    from quicksilver.sources import workloads

    load = workloads.load(spec, prompts=prompts, seed=seed, trace=trace)
    if streams is None:
        return load
    if not streams or any(s < 1 for s in streams):
        raise BadInputError("Streams are positive whole numbers, such as 1,8.")
    return load.model_copy(update={"concurrencies": tuple(sorted(set(streams)))})


def many_prompts(spec: str, prompts: int | None, seed: int) -> Workload:
    """Load a workload with so many prompts that each load of a search has its own, unless it is said how many."""
    try:
        return workload_of(spec, prompts or MANY_PROMPTS, seed, None)
    except BadInputError:
        if prompts is not None:
            raise
        # Of a synthetic shape with long prompts there can't be as many.
        return workload_of(spec, None, seed, None)


def silent(_: object) -> None:
    """Tell nobody."""
