"""The part of the Python API that measures an endpoint, and what opens one: a URL, an artefact, a run or a key of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from quicksilver.build import build as building
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.workload import Workload
from quicksilver.search.events import Event

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
