"""Certificates: where answers part, what is a fault, and the command on engines that keep their promise or break it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateways import running

from quicksilver import api
from quicksilver.bench import certified, equivalence, greedy
from quicksilver.bench.equivalence import END, Conditions, Counts, Output, compare, exercised, parting
from quicksilver.bench.stats import wilson
from quicksilver.cli import run
from quicksilver.engines.fake import Fake, FakeDecoder
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Artifact, Endpoint, Recipe, Settings
from quicksilver.nouns.certificate import Certificate
from quicksilver.serve.gateway import Gateway
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.sources.text import Tokenizer
from quicksilver.techniques import make

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import variants

SUPPORT = str(Path(__file__).parents[2] / "examples" / "workloads" / "support.jsonl")
RUN = Conditions("prompt-lookup", 4, exercised=True)
LIKELIEST = {7: -0.5, 8: -0.9, 9: -1.0, 10: -1.25, END: -3.0}


def said(*tokens: int, name: str = "one", likeliest: bool = False) -> Output:
    rows = tuple({**LIKELIEST, token: -0.5} for token in tokens) if likeliest else ()
    return Output(name, tokens, (-0.5,) * len(tokens), rows)


REFERENCE = said(1, 2, 3, END, likeliest=True)


@pytest.mark.parametrize(
    ("other", "position", "gap"),
    [
        (said(1, 2, 9, 4), 2, 0.5),
        (said(1, 2, 10), 2, 0.75),
        (said(1, 55), 1, None),
        (said(1, 2, 3, 8, END), 3, 0.4),
        (said(1, 2, END), 2, 2.5),
        (said(1, 2), 2, None),
    ],
)
def test_answers_part_at_their_first_difference(other: Output, position: int, gap: float | None) -> None:
    found = parting(REFERENCE, other)
    assert found is not None
    assert found.position == position
    assert found.gap == (None if gap is None else pytest.approx(gap))


def test_the_same_answers_are_identical() -> None:
    trial = compare([REFERENCE], [said(1, 2, 3, END)], RUN)
    assert (trial.verdict, trial.identical, trial.share.value, trial.tokens) == ("identical", 1, 1.0, 4)
    assert (trial.share.low, trial.share.high) == wilson(1, 1)
    assert trial.drift_p99 == 0


@pytest.mark.parametrize(
    ("token", "read", "verdict"),
    [
        (9, None, "near ties only"),  # half a nat, to the last bit: a logit is a multiple of an eighth
        (10, None, "fault"),
        (10, 0.75, "fault"),
        (10, 0.125, "near ties only"),
        (55, None, "fault"),
        (55, 0.25, "near ties only"),
    ],
)
def test_a_difference_is_a_fault_where_the_reference_is_sure_in_both_of_its_looks(
    token: int, read: float | None, verdict: str
) -> None:
    trial = compare([REFERENCE], [said(1, 2, token)], RUN, look_again=lambda *_: read)
    assert trial.verdict == verdict
    assert trial.differences[0].gap_read == (None if token == 9 else read)


def test_a_technique_that_had_nothing_to_do_is_not_certified_and_its_faults_stand() -> None:
    idle = Conditions("chunked-prefill", 4, exercised=False)
    assert compare([REFERENCE], [said(1, 2, 3, END)], idle).verdict == "not exercised"
    assert compare([REFERENCE], [said(1, 2, 3, 55)], idle).verdict == "fault"
    assert exercised({"max_batched_tokens": 256}, Counts(), 200) is False
    assert exercised({"max_batched_tokens": 256}, Counts(), 300) is True
    lookup = {"speculation": {"kind": "prompt_lookup"}}
    assert [exercised(lookup, Counts(n), 9) for n in (None, 0, 5)] == [None, False, True]
    assert exercised({"speculation": {"kind": "draft"}}, Counts(0), 9) is None
    assert exercised({}, Counts(5), 9) is False


def test_only_answers_to_the_same_prompts_are_compared() -> None:
    for others in ([said(1, name="two")], []):
        with pytest.raises(BadInputError, match="same prompts"):
            compare([REFERENCE], others, RUN)


def test_the_share_of_near_ties_is_that_of_close_runners_up() -> None:
    sure, torn = {1: -0.1, 2: -3.0}, {1: -0.7, 2: -0.8}
    output = Output("one", (1, 1, 1, 1), (0.0,) * 4, (sure, torn, sure, sure))
    assert equivalence.near_tie_share([output]) == 0.25


def test_whatever_ends_an_answer_is_the_same_token() -> None:
    row = {"token": "token_id:2", "logprob": -0.1, "top_logprobs": []}
    top = [{"token": f"token_id:{n}", "logprob": p} for n, p in ((2, -0.1), (3, -0.2), (4, -5.0))]
    chat = greedy.read("a", {"content": [row | {"top_logprobs": top}]}, "stop", {2, 3}, chat=True, top=3)
    assert chat == Output("a", (END,), (-0.1,), ({END: -0.1, 4: -5.0},))
    told = {"tokens": ["token_id:4"], "token_logprobs": [-0.1], "top_logprobs": None}
    assert greedy.read("a", told, "stop", {2, 3}, chat=False, top=0).tokens == (4, END)
    assert greedy.read("a", told, "length", {2, 3}, chat=False, top=0).tokens == (4,)
    with pytest.raises(ValueError, match="no token id"):
        greedy.read("a", told | {"tokens": [" river"]}, "length", {2}, chat=False, top=0)


class Torn(FakeDecoder):
    """Has a second token at a given place that is `gap` nats behind, and takes it where it speculates."""

    gap = 0.0

    def _logits(self, sequence: Any) -> dict[int, float]:
        found = super()._logits(sequence)
        if len(sequence.tokens) == 3:
            best, other = 40, 41
            top = max(found.values()) + 5
            found |= {best: top, other: top - self.gap}
            if self._speculation is not None:
                found[best] = top - self.gap - 0.01
        return found


class InProcess(Fake):
    """Serves the same gateway from a thread, with a decoder that a test can bend."""

    decoder: type[FakeDecoder] = FakeDecoder

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        decoder = self.decoder(artifact, settings)
        with running(Gateway("tiny"), lambda: (Tokenizer(artifact), decoder)) as endpoint:
            yield endpoint
        decoder.close()


@pytest.fixture(scope="module")
def artifact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    stack = [
        make("int8"),
        make({"name": "prompt-lookup", "tokens": 4}),
        make({"name": "chunked-prefill", "tokens": 512}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield api.build(Recipe(str(folder), stack, engine="fake"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    found = InProcess()
    monkeypatch.setattr("quicksilver.engines.find", lambda _: found)
    return found


def command(artifact: Artifact, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = run(["certify", artifact.key, SUPPORT, "--prompts", "4", "--max-tokens", "12", *args])
    return (code, *capsys.readouterr())


def test_an_engine_that_keeps_its_promise_is_lossless(
    artifact: Artifact, engine: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(artifact, capsys, "--json")
    made = Certificate.model_validate_json(out)
    assert code == 0
    assert made.verdict == "identical"
    assert (made.key, made.label, made.prompts, made.streams) == (artifact.key, artifact.label, 4, 4)
    assert made.tools["engine"]
    lookup, chunked = made.techniques
    assert lookup.changes["speculation"]["kind"] == "prompt_lookup"
    assert lookup.changes["speculation"]["tokens"] == 4
    assert lookup.guessed
    assert chunked.changes == {"max_batched_tokens": 512}
    assert chunked.verdict == "not exercised"  # the prompts are shorter
    assert "chunked-prefill(tokens=512) had nothing to do here" in made.remarks[0]
    assert made.together is not None
    assert made.together.verdict == made.control.verdict == "identical"
    assert "prompt-lookup" in err
    assert "left)" in err
    kept = Certificate.model_validate_json(api._certificate_path(artifact).read_bytes())
    assert kept == made
    assert certified.outcome(made).startswith("Lossless on these prompts: all 4 greedy answers are the same")
    assert "chunked" not in certified.outcome(made)


@pytest.mark.parametrize(
    ("gap", "verdict", "words"),
    [
        (0.25, "near ties only", "Lossless up to near ties, on these prompts: 0 of 4 greedy answers are the same"),
        (2.0, "fault", "Not lossless: with prompt-lookup(tokens=4) 4 of 4 answers part where the reference is sure"),
    ],
)
def test_one_that_breaks_it_is_lossless_up_to_near_ties_or_not_at_all(
    artifact: Artifact, engine: InProcess, capsys: pytest.CaptureFixture[str], *, gap: float, verdict: str, words: str
) -> None:
    engine.decoder = type("Gapped", (Torn,), {"gap": gap})
    code, out, _ = command(artifact, capsys)
    assert code == (verdict == "fault")
    assert words in " ".join(out.split())
    made = Certificate.model_validate_json(api._certificate_path(artifact).read_bytes())
    assert made.verdict == verdict
    assert made.control.verdict == "identical"
    assert [d.position for d in made.techniques[0].differences] == [3] * 4
    assert [d.gap for d in made.techniques[0].differences] == pytest.approx([gap] * 4, abs=0.01)


def test_a_later_run_that_chooses_the_same_artefact_has_its_certificate(
    artifact: Artifact, engine: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = api.certify(artifact.key, SUPPORT, prompts=2, streams=1, max_tokens=4)
    assert path == api._certificate_path(artifact)
    (tmp_path / "artifact").symlink_to(artifact.path)
    result = variants.golden().model_copy(
        update={"best": artifact.label, "tools": made.tools, "hardware": made.hardware}
    )
    with monkeypatch.context() as changed:
        changed.setattr("quicksilver.build.build.tools", lambda _: made.tools | {"engine": "another"})
        api._recall_certificate(result, tmp_path)
    assert not (tmp_path / "certificate.json").exists()
    api._recall_certificate(result, tmp_path)
    found = api.Optimization(result, tmp_path)
    assert found.certificate == made
    assert "Lossless on these prompts" in found._repr_html_()


def test_an_engine_without_log_probabilities_is_told_so(
    artifact: Artifact, engine: InProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(*_: Any, **__: Any) -> Any:
        return 200, {"choices": [{"message": {"content": "x"}, "logprobs": None, "finish_reason": "stop"}]}

    monkeypatch.setattr(greedy, "request_json", bare)
    code, out, err = command(artifact, capsys)
    assert code == EngineError.exit_code
    assert "no log-probabilities with token ids" in err
    assert out == ""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.1:1/v1", "is a server, which can't be served without its techniques"),
        ("runs/nowhere", "There is no artefact at runs/nowhere."),
        ("int8", "has no technique that claims to leave answers as they are (chunked-prefill, compile, draft, "),
    ],
)
def test_what_can_not_be_certified_is_refused_in_a_sentence(
    folder: Path, artifact: Artifact, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    if target == "int8":
        target = api.build(Recipe(str(folder), [make("int8")], engine="fake")).key
    assert run(["certify", target, SUPPORT, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]["message"]
