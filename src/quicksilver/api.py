"""The Python API: plain functions with the words of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.errors import BadInputError, unknown
from quicksilver.measuring import (
    Progress,
    benchmark,
    compare,
    find_artifact,
    goal_of,
    made_elsewhere,
    runnable,
    serving,
    silent,
    workload_of,
)
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.certificate import Certificate
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.export import Export
from quicksilver.nouns.model import Model
from quicksilver.nouns.preset import Preset
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.result import Candidate, Result
from quicksilver.search.events import Event

if TYPE_CHECKING:
    from rich.console import Group

    from quicksilver.nouns.plan import Plan

__all__ = [
    "GoalName", "Optimization", "Progress", "benchmark", "build", "certify", "compare", "export", "find_artifact", "optimize",
    "plan", "plan_deployment", "serve", "serving",
]  # fmt: skip

BUDGET_MINUTES, QUICK_MINUTES = 10.0, 3.0
GoalName = Literal["cost", "throughput", "latency"]


@dataclass(frozen=True, slots=True)
class Optimization:
    """A finished search: its result, and the folder that holds result.json, report.html and the winner's artefact."""

    result: Result
    folder: Path

    @property
    def best(self) -> Candidate | None:
        """The candidate that won; None if nothing meets the limits."""
        return self.result.candidate(self.result.best) if self.result.best else None

    @property
    def certificate(self) -> Certificate | None:
        """The winner's certificate; None if `certify` wasn't asked for one."""
        from quicksilver.bench import report

        return report.certificate_of(self.result, self.folder)

    def table(self, *, width: int | None = None) -> Group:
        """Return the table of recipes, for rich to print."""
        from quicksilver.bench import report

        return report.table(self.result, self.certificate, width=width)

    def report(self) -> Path:
        """Return the path of report.html."""
        return self.folder / "report.html"

    @contextmanager
    def serve(self, *, port: int = 0) -> Iterator[Endpoint]:
        """Serve the winner until the context ends."""
        with serving(str(self.folder), port=port) as endpoint:
            yield endpoint

    def _repr_html_(self) -> str:
        from quicksilver.bench import report

        return report.notebook_html(self.result, self.certificate)


def optimize(
    model: str | Path,
    *,
    workload: str | Path = "hotpotqa",
    goal: str = "cost",
    max_quality_loss: float = 1.0,
    max_task_loss: float | None = None,
    metric: str | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    judge_key_env: str | None = None,
    ttft_p95_ms: float | None = None,
    itl_p95_ms: float | None = None,
    memory_mb: float | None = None,
    engine: str = "openvino",
    engines: str | Sequence[str] | None = None,
    recipes: Sequence[Recipe] | None = None,
    streams: Sequence[int] | None = None,
    budget_minutes: float | None = None,
    trials: int | None = None,
    quick: bool = False,
    prompts: int | None = None,
    price_per_hour: float | None = None,
    instance: str | None = None,
    discount: float = 0.0,
    input_output_ratio: float = 3.0,
    accept_licence: bool = False,
    seed: int = 0,
    runs: Path = Path("runs"),
    run_id: str | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Optimization:
    """Find, prove and build the best way to serve a model on this machine.

    With `engines`, names or "all", the recipes of several engines are measured in one run: what they are compared with is the as-is model
    on the first of them that tells the log-probabilities of a prompt. Of all, those that aren't installed are left out.

    `metric` scores answers: a name such as f1, `regex:PATTERN`, or `path/to/file.py:function`; `judge` is the URL of a model that compares
    them. It ends after `budget_minutes` (10, or 3 if it is `quick`), after `trials` recipes were raced, or when what is left promises less
    than a race can tell apart. `quick` tries nothing that has to be calibrated, and races the best only once more. The same call
    again takes up a run that was interrupted. Raises QuicksilverError, one clear sentence.
    """
    from quicksilver.bench import metrics, report
    from quicksilver.bench.judge import Judge
    from quicksilver.bench.price import price as make_price
    from quicksilver.engines.remote import connect
    from quicksilver.hardware import detect
    from quicksilver.search.choosing import chosen_engines
    from quicksilver.search.optimize import optimize as carry_out
    from quicksilver.search.outcome import keep_artifact
    from quicksilver.search.run import open_run
    from quicksilver.search.state import Search
    from quicksilver.sources import models

    begun = time.monotonic()
    if goal not in get_args(GoalName):
        raise unknown("goal", goal, get_args(GoalName))
    if budget_minutes is None:
        budget_minutes = QUICK_MINUTES if quick else BUDGET_MINUTES
    if budget_minutes <= 0:
        raise BadInputError("A budget is a positive number of minutes.")
    if trials is not None and trials < 1:
        raise BadInputError("A search needs at least one trial.")
    driven = chosen_engines(engines if engines is not None else [engine])
    if recipes is not None and not recipes:
        raise BadInputError("The list of recipes is empty: leave it out to search the whole space.")
    model, workload = str(model), str(workload)
    price = make_price(price_per_hour, instance, discount, input_output_ratio, cores=detect().cores)
    wanted = goal_of(
        metric=goal,
        max_quality_loss=max_quality_loss,
        max_task_loss=max_task_loss,
        ttft_p95_ms=ttft_p95_ms,
        itl_p95_ms=itl_p95_ms,
        memory_mb=memory_mb,
    )
    tell = progress or silent
    tell(Event("prepare", f"model {model}"))
    found = models.resolve(model, accept_licence=accept_licence)
    given = [_rebased(r, found, driven.names, accept_licence=accept_licence) for r in recipes] if recipes else None
    load = workload_of(workload, prompts, seed, streams)
    scored_by = metrics.chosen(metric, load, needed=max_task_loss is not None and judge is None)
    judging = connect(judge, judge_model, judge_key_env) if judge is not None else None
    inputs = {
        "model": found.fingerprint,
        "workload": load.hash,
        "goal": wanted.hash,
        "engine": driven.identity,
        "recipes": [r.hash for r in given] if given else None,
        "budget": budget_minutes,
        "trials": trials,
        "quick": quick,
    }
    run = open_run(runs, found.name, inputs, run_id=run_id, budget_s=budget_minutes * 60, progress=tell, begun=begun)
    called = command or _call(model, workload, goal)
    search = Search(run, found, load, wanted, price, driven.names[0], called, metrics=scored_by)
    search.others, search.left_out, search.reader_engine = driven.names[1:], list(driven.left_out), driven.reader
    search.judge = Judge(judging, run.folder / "verdicts.jsonl") if judging is not None else None
    search.trials, search.quick = trials, quick
    with run.watching():
        result = carry_out(search, given)
    keep_artifact(search, result)
    _recall_certificate(result, run.folder)
    report.save(result, run.folder)
    return Optimization(result, run.folder)


def certify(
    target: str,
    workload: str | Path = "hotpotqa",
    *,
    prompts: int = 24,
    streams: int = 4,
    max_tokens: int = 120,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Certificate, Path]:
    """Hold the techniques of an artefact that claim to leave greedy answers as they are to it; return the certificate and its file.

    `target` is a folder (an artefact's or a run's) or a key of the store. It is kept in the cache folder under the artefact's key,
    and by a run as certificate.json, which its report then shows. Raises QuicksilverError, one clear sentence.
    """
    from quicksilver.bench import report
    from quicksilver.bench.certify import certify as carry_out
    from quicksilver.sources.home import writable

    if target.startswith(("http://", "https://")):
        raise BadInputError(
            f"{target} is a server, which can't be served without its techniques from here; give an artefact, runs/ID or a key "
            "of the store."
        )
    if min(prompts, streams, max_tokens) < 1:
        raise BadInputError("A certificate needs at least one prompt, one stream and one token.")
    artifact = runnable(target)
    path = _certificate_path(artifact)
    writable(path.parent)
    tell = progress or silent
    made = carry_out(
        artifact,
        workload_of(str(workload), None, seed, None),
        count=prompts,
        streams=streams,
        max_tokens=max_tokens,
        on_progress=lambda name, done, total, left: tell(Event("certify", name, done, total, left)),
    )
    report.write_whole(path, made.model_dump_json(indent=2) + "\n")
    run = artifact.path.parent
    return made, report.keep(made, run) if (run / report.RESULT).is_file() else path


def plan(recipe: Recipe, workload: str = "hotpotqa", *, accept_licence: bool = False, seed: int = 0) -> planning.Plan:
    """Plan the build of a recipe: its steps, which of them are there, and what the others need."""
    from quicksilver import engines
    from quicksilver.sources import models, workloads

    engines.installed(recipe.engine)
    model = models.resolve(recipe.model, accept_licence=accept_licence)
    calibrated = any(t.calibrated for t in recipe.techniques)
    calibration = workloads.load(workload, seed=seed).calibration if calibrated else ()
    return planning.make(recipe, model, calibration)


def plan_deployment(
    model: str,
    *,
    workload: str | Path = "622x250",
    streams: int = 16,
    slo: str | None = None,
    instances: Sequence[str] | None = None,
    recipes: str | None = None,
    commitment: str = "on-demand",
    discount: float = 0.0,
    input_output_ratio: float = 3.0,
    acceptance: str | None = None,
    replicas_for: str | None = None,
    report: Path | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Plan:
    """Predict a model on machines that aren't here, and find the cheapest that meets an SLO; every figure is predicted.

    `instances` are names of the catalogue, all of it if it isn't given; `recipes` "fp8,int4+tp4"; `acceptance` "2.0/3" guesses three
    tokens of which two are accepted; `replicas_for` "2000tok/s" or "8req/s" sizes a fleet with queues, and needs an `slo`. `report` is a
    page that is written. Raises BadInputError, one clear sentence.
    """
    from quicksilver.bench import report as reports
    from quicksilver.nouns.slo import Slo
    from quicksilver.planner import fleet
    from quicksilver.planner import plan as planner
    from quicksilver.planner import recipes as layouts
    from quicksilver.planner import report as page
    from quicksilver.planner.asked import asked as read
    from quicksilver.planner.predict import payment

    asked = read(str(workload), seed=seed)
    tell = progress or silent
    question = planner.Question(
        asked=asked,
        load=asked.load(streams),
        slo=Slo.parse(slo) if slo is not None else None,
        payment=payment(commitment, discount, input_output_ratio),
        recipes=layouts.parse(recipes) if recipes is not None else (),
        guessing=layouts.acceptance(acceptance) if acceptance is not None else None,
        fleet=fleet.wanted(replicas_for, asked) if replicas_for is not None else None,
        seed=seed,
    )
    found = planner.plan(
        model,
        question,
        instances=instances or (),
        command=command or f"plan_deployment({model!r}, workload={str(workload)!r}, streams={streams}, slo={slo!r})",
        tell=lambda phase, text, done, total: tell(Event(phase, text, done, total)),
    )
    if report is not None:
        reports.write_whole(report, page.html(found))
    return found


def build(
    recipe: Recipe,
    *,
    workload: str = "hotpotqa",
    accept_licence: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Artifact:
    """Build a recipe, calibrated on a workload where a technique needs it, and return its artefact."""
    tell = progress or silent
    made = plan(recipe, workload, accept_licence=accept_licence, seed=seed)
    return building.build(made, say=lambda text: tell(Event("build", text)))


def export(
    target: str,
    to: str,
    *,
    model_uri: str | None = None,
    image: str | None = None,
    gpus: int | None = None,
    name: str | None = None,
    out: Path | None = None,
) -> Export:
    """Make the files that another system reads to serve an artefact: `to` is vllm-args, lmi, docker-compose, kserve or ray-serve.

    `model_uri` is where the artefact's files will be: a folder, a hub id, s3://, gs:// or pvc://; `gpus` is for each replica. The files are
    written into `out`, a folder that is new or empty, if it is given. Raises BadInputError for what the target can't serve.
    """
    from quicksilver import deploy

    deploy.find(to)
    if out is not None:
        deploy.check_folder(out)
    made = deploy.render(find_artifact(target), to, weights=model_uri, image=image, gpus=gpus, name=name)
    if out is not None:
        deploy.write(made, out)
    return made


def presets(model: str | None = None, *, workload: str | None = None, everywhere: bool = False) -> list[Preset]:
    """Return the presets that searches found for this machine (or any), of all models or one; the newest search first."""
    from quicksilver.search import presets as kept

    return kept.known(model, workload=workload, everywhere=everywhere)


def use_preset(
    name: str,
    model: str,
    *,
    workload: str | None = None,
    any_machine: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Make a preset the one that is served when its model is named; return its artefact, built again if it is gone."""
    from quicksilver.search import presets as kept

    tell = progress or silent
    chosen = kept.find(name, model, workload=workload, any_machine=any_machine)
    found = kept.artifact(chosen, say=lambda text: tell(Event("build", text)))
    kept.set_default(chosen)
    return found


def serve(
    target: str,
    *,
    engine: str | None = None,
    preset: str | None = None,
    workload: str | None = None,
    any_machine: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    insecure: bool = False,
    replace: bool = False,
    api_keys: Sequence[str] = (),
    max_waiting: int = 256,
    request_timeout_s: float = 600,
    log_format: Literal["json", "text", "none"] = "none",
    record: Path | None = None,
    record_prompts: bool = False,
    record_answers: bool = False,
    record_limit_mb: float | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Serve in the foreground until SIGTERM or Ctrl-C; return the exit code.

    With `engine` the target is a model, and what is served is the model as it is, by that engine. With `preset` it is a model,
    too, and what is served is that preset of it (see `presets`). With `api_keys` each request
    has to carry one of them. `max_waiting` answers may wait for their turn (429 beyond), and an answer that takes longer than
    `request_timeout_s` is ended. With `replace` it takes the port over from the server that is there, once it is ready, and
    answers to that one's model names as well. `say` hears what is going on, and `log_format` is that of a line a request on stderr.

    When requests come and how long they are is appended to the file `record`, up to a size of `record_limit_mb` (100), and
    is a workload; what they say is with `record_prompts`, and what is answered with `record_answers`: ask those who ask.
    """
    from quicksilver import engines
    from quicksilver.serve.limits import Limits
    from quicksilver.serve.server import Place, make_recording
    from quicksilver.serve.server import serve as run_server

    recording = make_recording(record, prompts=record_prompts, answers=record_answers, limit_mb=record_limit_mb)
    if engine is not None:
        if preset is not None:
            raise BadInputError("A preset says which engine serves it: give --engine or --preset.")
        artifact = build(Recipe(target, engine=engine), progress=lambda event: (say or silent)(event.text))
    elif preset is not None:
        from quicksilver.search import presets as kept

        chosen = kept.find(preset, target, workload=workload, any_machine=any_machine)
        artifact = kept.artifact(chosen, say=say or silent)
    else:
        artifact = runnable(target)
    if (remark := made_elsewhere(artifact)) is not None:
        (say or silent)(remark)
    served_by = engines.installed(artifact.engine)
    if served_by.abilities.own_server:
        from quicksilver.serve.foreign import serve as serve_foreign

        if recording is not None or replace:
            raise BadInputError(
                f"The engine {artifact.engine} answers by its own server, which can't record traffic or take over a port; "
                "leave --record and --replace out."
            )
        serve_foreign(served_by, artifact, Place(host, port, insecure=insecure), api_keys=api_keys, say=say or silent)
        return 0
    limits = Limits(
        max_streams=artifact.settings.max_streams,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout_s,
        api_keys=tuple(api_keys),
    )
    place = Place(host, port, insecure=insecure, replace=replace)
    settings = artifact.settings.model_dump_json()
    run_server(
        artifact.engine,
        artifact.path,
        settings,
        place,
        limits=limits,
        say=say or silent,
        log_format=log_format,
        recording=recording,
    )
    return 0


def _certificate_path(artifact: Artifact) -> Path:
    from quicksilver.sources.home import home

    return home() / "certificates" / f"{artifact.key}.json"


def _recall_certificate(result: Result, folder: Path) -> None:
    """Put the certificate that the winner has from another run into a run's folder, if it was made here with the same tools."""
    from quicksilver.bench import report

    if result.best is None or not (folder / "artifact").is_dir():
        return
    artifact = Artifact.open(folder)
    found = report.load_certificate(_certificate_path(artifact))
    if (
        found is not None
        and found.tools == building.tools(artifact.engine)
        and found.hardware.cpu == result.hardware.cpu
    ):
        report.keep(found, folder)


def _rebased(recipe: Recipe, model: Model, engines: Sequence[str], *, accept_licence: bool) -> Recipe:
    """Return a recipe under the model's own name. Raises BadInputError if it is for another model, or an engine that isn't searched."""
    from quicksilver.sources import models

    if recipe.engine not in engines:
        raise BadInputError(
            f"The recipe {recipe.label} is for the engine {recipe.engine}, and the search for {', '.join(engines)}."
        )
    if recipe.model == model.source:
        return recipe
    if models.resolve(recipe.model, accept_licence=accept_licence).fingerprint != model.fingerprint:
        raise BadInputError(
            f"The recipe {recipe.label} is for the model {recipe.model}, and the search for {model.name}."
        )
    return recipe.model_copy(update={"model": model.source})


def _call(model: str, workload: str, goal: str) -> str:
    return f"quicksilver.optimize({model!r}, workload={workload!r}, goal={goal!r})"
