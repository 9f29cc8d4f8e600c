"""Text to token ids and back: chat templates, incremental decoding, stop strings."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import Prompt
from quicksilver.sources.hermes import OPENING, in_words

if TYPE_CHECKING:
    from jinja2 import Template

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """The tokenizer and chat template of a model's folder. Raises BadInputError for a folder that lacks them."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInputError(f"{folder} has no tokenizer.json.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadInputError(f"{path} can't be read: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.folder = folder
        self._config = _read_json(folder / "tokenizer_config.json")
        model = _read_json(folder / "config.json")
        text_model = model | model.get("text_config", {})
        self.vocab_size: int = text_model.get("vocab_size") or self._tokenizer.get_vocab_size()
        """Token ids that the model knows: 0 up to this, exclusive."""
        self.context: int | None = text_model.get("max_position_embeddings") or text_model.get("n_positions")
        """Positions that the model has; None if its config doesn't say."""
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = frozenset(number for number, token in added.items() if token.special)
        """Token ids that have no text in an answer."""
        self.eos = self._eos(_read_json(folder / "generation_config.json"), text_model)
        """Token ids that end an answer."""
        self._pieces: dict[int, bytes] = {}
        self._decoder: Any = json.loads(self._tokenizer.decoder.__getstate__()) if self._tokenizer.decoder else {}
        self._strips = '"Strip"' in json.dumps(self._decoder) or self._decoder.get("prepend_scheme") in (
            "always",
            "first",
        )

    def _eos(self, generation: Mapping[str, Any], model: Mapping[str, Any]) -> frozenset[int]:
        for config in (generation, model):
            value = config.get("eos_token_id")
            if value is not None:
                return frozenset([value] if isinstance(value, int) else value)
        number = self._tokenizer.token_to_id(_content(self._config.get("eos_token")) or "")
        return frozenset() if number is None else frozenset([number])

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of a text, with the tokens that the model wants around it unless `special` is off."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Iterable[int], *, opens: bool = False) -> str:
        """Return the text of token ids, special ones left out; `opens` if nothing came before them."""
        stream = self.stream(opens=opens)
        return "".join([*(stream.step(number) for number in ids), stream.finish()])

    def stream(self, *, opens: bool) -> TextStream:
        """Return an incremental decoder; `opens` if the text starts a message rather than continues one."""
        return TextStream(self, strips=opens and self._strips)

    def piece(self, number: int) -> bytes:
        """Return the UTF-8 bytes, perhaps part of a character, that a token stands for."""
        found = self._pieces.get(number)
        if found is None:
            found = self._pieces[number] = self._piece(number)
        return found

    def _piece(self, number: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(number)
        if token is None:  # the model's matrix may be wider than the vocabulary
            return b""
        if number in self.special:
            return token.encode()
        kinds = self._kinds
        if "ByteLevel" in kinds:
            try:
                return bytes(BYTE_OF[char] for char in token)
            except KeyError:  # an added token is written as it is
                return token.encode()
        if "ByteFallback" in kinds or "Metaspace" in kinds:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes.fromhex(token[3:5])
            return token.replace(SPACE, " ").encode()
        # Other decoders look at the neighbour: take what the token adds after one that is plain.
        anchor = next(n for n in range(self.vocab_size) if n not in self.special)
        before: str = self._tokenizer.decode([anchor])
        return self._tokenizer.decode([anchor, number])[len(before) :].encode()  # type: ignore[no-any-return]

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(part.get("type", "") for part in [self._decoder, *self._decoder.get("decoders", [])])

    @cached_property
    def template(self) -> Template | None:
        """The compiled chat template; None for a model that has none."""
        return _compile(self._sources["default"]) if "default" in self._sources else None

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The chat templates' texts, by name; most models have one, `default`."""
        file = self.folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else self._config.get("chat_template")
        if isinstance(source, list):
            return {entry["name"]: entry["template"] for entry in source}
        return {} if source is None else {"default": source}

    @cached_property
    def _tool_source(self) -> str:
        """The text of the template for conversations with tools: a model may have one for them alone."""
        return self._sources.get("tool_use", self._sources.get("default", ""))

    @cached_property
    def _tool_template(self) -> Template | None:
        """The compiled template that knows tools; None if no template mentions them."""
        if not re.search(r"\btools\b", self._tool_source):
            return None
        return _compile(self._tool_source) if "tool_use" in self._sources else self.template

    @property
    def tagged_calls(self) -> bool:
        """Whether the model writes tool calls as `<tool_call>{"name", "arguments"}</tool_call>`, and not as bare JSON."""
        return self._tool_template is None or OPENING in self._tool_source

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        open_answer: bool = True,
    ) -> str:
        """Return a conversation as the model was trained to read it; `open_answer` begins the assistant's turn.

        If the chat template never mentions `tools`, they are put into a system message in the Hermes form (`<tools>`,
        and calls as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`), so that calls can still be asked for.

        Raises BadInputError if the model has no chat template, or if the template refuses the messages.
        """
        from jinja2 import TemplateError

        template = self.template
        if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            if self._tool_template is None:
                messages, tools = in_words(messages, tools), ()
            else:
                template = self._tool_template
        if template is None:
            raise BadInputError("This model has no chat template; use /v1/completions.")
        tokens = {name: text for name in SPECIAL if (text := _content(self._config.get(name))) is not None}
        try:
            return template.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=open_answer,
                **tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise BadInputError(f"The model's chat template refuses these messages: {error}") from error

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a workload's prompt, as the server would make them. Raises BadInputError."""
        if prompt.token_ids is not None:
            return list(prompt.token_ids)
        if prompt.messages is not None:
            return self.encode(self.chat([m.model_dump() for m in prompt.messages]), special=False)
        return self.encode(prompt.prompt or "")


class TextStream:
    """Turns tokens into text as they come; the parts, joined, don't depend on how the tokens were grouped."""

    __slots__ = ("_decode", "_piece", "_special", "_strips")

    def __init__(self, tokenizer: Tokenizer, *, strips: bool) -> None:
        # Bytes that are no UTF-8 become U+FFFD, as in the tokenizers library.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._piece = tokenizer.piece
        self._special = tokenizer.special
        self._strips = strips

    def step(self, number: int) -> str:
        """Return the text that a token completes; empty in the middle of a character."""
        if number in self._special:
            return ""
        text = self._decode(self._piece(number))
        if self._strips and text:
            self._strips = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        """Return what an unfinished character comes to."""
        return self._decode(b"", True)


class StopScanner:
    """Finds stop strings in text that comes in parts, and holds back only what may become one."""

    __slots__ = ("_held", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def step(self, text: str) -> tuple[str, bool]:
        """Return the text that is safe to show, and whether a stop string ended it."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        hold = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def finish(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _byte_of() -> dict[str, int]:
    """Return GPT-2's table from the character that writes a byte to the byte (openai/gpt-2, encoder.py)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_of()


def _content(token: Any) -> str | None:
    """Return a special token's text, which configs write as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} is not a JSON object.")
    return value


def _compile(source: str) -> Template:
    """Compile a chat template in a sandbox, with what transformers offers to templates."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it only wraps them."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BadInputError(f"The model's chat template can't be compiled: {error}.") from error
