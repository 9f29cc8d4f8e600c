"""The engine contract over every engine that can serve something tiny."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from quicksilver import api, environments
from quicksilver.engines import find, installed, names
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Endpoint, Engine, Recipe, Settings
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.engine_contract import EngineContract, ask, listen, open_answer, until
from quicksilver.testing.tiny import make_tiny_model

NEEDED_VARIABLE = "QUICKSILVER_TEST_ENGINES"
"""Names of engines whose environments have to be there."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")


class TestFake(EngineContract):
    # Slow enough that a sequence nobody cancels would outlast the test.
    settings: ClassVar[Settings] = Settings(max_streams=4, properties={"decode_ms": 2.0, "batch_cost": 0.1})

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return find("fake")

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, tiny: Path) -> Path:
        return tiny

    def test_a_cancelled_sequence_makes_room(self, engine: Engine, artifact: Path) -> None:
        """With room for one, a sequence of half an hour would keep the next from ever starting."""
        settings = Settings(max_streams=1, properties={"decode_ms": 1000.0})
        with engine.serve(artifact, settings) as endpoint:
            long = {"prompt": "one two", "max_tokens": 2000, "ignore_eos": True}
            streamed = open_answer(endpoint, "/completions", long | {"stream": True})
            streamed.readline()
            streamed.close()
            unstreamed = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import sys, urllib.request as u;u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode()))",
                    f"{endpoint.url}/completions",
                    '{"prompt": "one two", "max_tokens": 2000, "ignore_eos": true}',
                ],
                env=os.environ | {"no_proxy": "127.0.0.1"},
            )
            until(lambda: ask(endpoint, "//health")["running"] == 1)
            unstreamed.kill()
            unstreamed.wait()
            assert (
                ask(endpoint, "/completions", {"prompt": "three", "max_tokens": 1})["usage"]["completion_tokens"] == 1
            )

    def test_speculation_changes_the_pieces_and_not_the_text(self, engine: Engine, artifact: Path) -> None:
        texts, counts = [], []
        for speculation in (None, {"kind": "prompt_lookup", "tokens": 4}):
            settings = Settings.model_validate({"speculation": speculation, "properties": {"decode_ms": 1.0}})
            with engine.serve(artifact, settings) as endpoint:
                body = {
                    "prompt": "The question is",
                    "max_tokens": 60,
                    "ignore_eos": True,
                    "temperature": 0.8,
                    "seed": 1,
                }
                chunks = listen(endpoint, "/completions", body)
                texts.append("".join(chunk["choices"][0]["text"] for chunk in chunks))
                counts.append(len(chunks))
        assert texts[0] == texts[1]
        assert counts[1] < counts[0] / 2

    def test_dies_with_its_parent(self, artifact: Path) -> None:
        script = (
            "import sys, time\nfrom pathlib import Path\nfrom quicksilver.engines import find\n"
            "from quicksilver.nouns import Settings\n"
            "with find('fake').serve(Path(sys.argv[1]), Settings()) as endpoint:\n"
            "    print(endpoint.pid, flush=True)\n    time.sleep(600)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script, str(artifact)], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            server = int(parent.stdout.readline())
            parent.kill()
        until(lambda: not _runs(server))

    def test_finishes_what_is_in_flight_when_told_to_end(self, artifact: Path) -> None:
        """SIGTERM: the stream under way is whole, a new client is refused, and the exit code is 0."""
        command = [sys.executable, "-m", "quicksilver.serve", "--engine", "fake", "--artifact", str(artifact)]
        settings = Settings(properties={"decode_ms": 30.0}).model_dump_json()
        with subprocess.Popen([*command, "--port", "0", "--settings", settings], stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                endpoint = _endpoint(server.stdout.readline())
                until(lambda: open_answer(endpoint, "//health", None).status == 200)
                body = {"prompt": "one two", "max_tokens": 40, "ignore_eos": True, "stream": True}
                response = open_answer(endpoint, "/completions", body)
                first = response.readline()
                server.send_signal(signal.SIGTERM)
                rest = response.read()
                assert first.startswith(b"data: ")
                assert rest.rstrip().endswith(b"data: [DONE]")
                assert server.wait(60) == 0
                with pytest.raises(ConnectionRefusedError):
                    open_answer(endpoint, "/models", None)
            finally:
                server.kill()


class TestOpenVino(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return find("openvino")

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
            yield api.build(Recipe(str(tiny))).path

    @pytest.mark.parametrize(
        "techniques", [[], ["prompt-lookup"], ["prefix-caching"], ["chunked-prefill"], ["kv-cache"]]
    )
    def test_serving_techniques_answer(self, engine: Engine, artifact: Path, techniques: list[str]) -> None:
        settings = Recipe("any", [make(name) for name in techniques]).effective_settings()
        with engine.serve(artifact, settings) as endpoint:
            body = {"prompt": "one two three one two", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
            assert ask(endpoint, "/completions", body)["usage"]["completion_tokens"] == 12
            sampled = body | {"temperature": 0.9, "seed": 3, "top_p": 0.9}
            assert ask(endpoint, "/completions", sampled)["usage"]["completion_tokens"] == 12


def installed_engine(name: str) -> Engine:
    """Return an engine of an environment of its own. Skips without it, and fails if `make` has added it (see Makefile)."""
    try:
        return installed(name)
    except EngineError as error:
        if name in os.environ.get(NEEDED_VARIABLE, "").split():
            raise
        pytest.skip(str(error))


class TestLlamaCpp(EngineContract):
    """In the environment that `make test` adds."""

    settings: ClassVar[Settings] = Settings(max_streams=4, properties={"build": "prebuilt"})

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return installed_engine("llamacpp")

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, engine: Engine, tiny: Path) -> Path:
        return api.build(Recipe(str(tiny), engine="llamacpp")).path


class TestLlamaCppForThisCpu(TestLlamaCpp):
    """Where somebody has built it (`make native`): the same words have to be those of llama-server itself."""

    settings: ClassVar[Settings] = Settings(max_streams=4, properties={"build": "native"})

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        engine = installed_engine("llamacpp")
        if environments.native(engine.environment) is None:
            pytest.skip("llama.cpp isn't built for this CPU; `quicksilver engine add llamacpp --native` builds it.")
        return engine


class TestRemote(EngineContract):
    """Against a fake that is served as somebody else would."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return find("remote")

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        folder = tmp_path_factory.mktemp("remote")
        with find("fake").serve(tiny, TestFake.settings) as endpoint:
            document = {"url": endpoint.url, "model": endpoint.model}
            (folder / "remote.json").write_text(json.dumps(document), encoding="utf-8")
            yield folder

    def test_a_server_that_has_died_is_one_sentence(self, engine: Engine, tiny: Path, tmp_path: Path) -> None:
        with find("fake").serve(tiny, TestFake.settings) as endpoint:
            (tmp_path / "remote.json").write_text(json.dumps({"url": endpoint.url}), encoding="utf-8")
        with pytest.raises(EngineError, match="No HTTP answer"), engine.serve(tmp_path, self.settings):
            pass


def _endpoint(line: bytes) -> Endpoint:
    return Endpoint(url=f"http://127.0.0.1:{json.loads(line)['port']}/v1", model="model")


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "\nState:\tZ" not in status.read_text(encoding="utf-8")
    except OSError:
        return False


def test_every_engine_can_be_found_by_its_name() -> None:
    assert "fake" in names()
    for name in names():
        assert find(name).name == name


@pytest.mark.parametrize("name", [name for name in names() if find(name).environment != "default"])
def test_an_engine_that_is_not_installed_says_the_one_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    engine = find(name)
    if engine.python_variable:
        monkeypatch.delenv(engine.python_variable, raising=False)
    sentence = rf"^[^\n]* quicksilver engine add {engine.environment} [^\n]*$"
    with pytest.raises(EngineError, match=sentence):
        engine.version()
    with pytest.raises(EngineError, match=sentence):
        installed(name)
    with pytest.raises(EngineError, match=sentence), engine.serve(tmp_path, Settings()):
        pass


def test_an_unknown_engine_is_refused_with_a_suggestion() -> None:
    with pytest.raises(BadInputError, match="'fake'"):
        find("fakee")


def test_listing_engines_imports_none_of_them() -> None:
    script = "import sys, quicksilver.engines as e; e.names(); print([m for m in ('openvino', 'torch', 'quicksilver.engines.fake') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
