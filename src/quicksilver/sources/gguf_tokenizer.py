"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library so that it encodes as llama.cpp does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from quicksilver.errors import BadInputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The splitting patterns as the models' own tokenizer.json files give them; llama.cpp names them in tokenizer.ggml.pre.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _SPLIT.replace("DIGITS", "{1,3}")
QWEN2 = _SPLIT.replace("DIGITS", "")
_LLAMA3_NAMES = {"llama-bpe", "llama3", "llama-v3"}
_PRE = {"smollm", "starcoder", "gpt-2", "default", "qwen2"} | _LLAMA3_NAMES

Value = Callable[[str], Any]
"""Looks up a metadata key; None when the file doesn't have it."""


class Kind(IntEnum):
    """A token's type in tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer(value: Value) -> Tokenizer:
    """Build the tokenizer that a GGUF file's metadata describes. Raises BadInputError when it can't be built right."""
    tokens = _tokens(value)
    kinds = value("tokenizer.ggml.token_type") or [Kind.NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise BadInputError(f"The GGUF's tokenizer is damaged: {len(tokens)} tokens, but {len(kinds)} token types.")
    model = value("tokenizer.ggml.model")
    if model == "gpt2":
        built = _byte_level(tokens, value)
    elif model == "llama":
        built = _sentence_piece(tokens, kinds, value)
    else:
        raise BadInputError(
            f"The GGUF's tokenizer is of the kind {model!r}, which can't be converted; gpt2 and llama can."
        )
    _add(built, tokens, kinds, special=True)
    _add(built, tokens, kinds, special=False)
    if built.get_vocab_size() != len(tokens):
        raise BadInputError("The GGUF's tokenizer is damaged: its tokens don't keep their numbers.")
    _frame(built, tokens, value)
    return built


def tokenizer_config(value: Value) -> dict[str, Any]:
    """Return tokenizer_config.json for the rebuilt tokenizer: the class, the special tokens' texts, the context length."""
    tokens = _tokens(value)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}.items():
        number = value(f"tokenizer.ggml.{key}_token_id")
        if number is not None and 0 <= number < len(tokens):
            config[name] = tokens[number]
    context = value(f"{value('general.architecture')}.context_length")
    return config | ({"model_max_length": int(context)} if context else {})


def _tokens(value: Value) -> Sequence[str]:
    tokens: Sequence[str] | None = value("tokenizer.ggml.tokens")
    if not tokens:
        raise BadInputError("The GGUF holds no tokenizer; take a file that was converted with its vocabulary.")
    if len(set(tokens)) != len(tokens):
        raise BadInputError("The GGUF's tokenizer is damaged: the same token stands there twice.")
    return tokens


def _add(built: Tokenizer, tokens: Sequence[str], kinds: Sequence[int], *, special: bool) -> None:
    """Make control tokens, or the user-defined ones, match as a whole before any splitting."""
    from tokenizers import AddedToken

    wanted = {Kind.CONTROL, Kind.UNKNOWN} if special else {Kind.USER_DEFINED}
    chosen = [
        AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k in wanted
    ]
    (built.add_special_tokens if special else built.add_tokens)(chosen)


def _byte_level(tokens: Sequence[str], value: Value) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = value("tokenizer.ggml.pre") or "default"
    if name not in _PRE:
        raise BadInputError(
            f"The GGUF splits text by the rule {name!r}, which isn't known here; known: {', '.join(sorted(_PRE))}."
        )
    pairs = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges") or ()]
    vocab = {token: number for number, token in enumerate(tokens)}
    bad = next((p for p in pairs if len(p) != 2 or not {p[0], p[1], p[0] + p[1]} <= vocab.keys()), None)
    if not pairs or bad is not None:
        raise BadInputError(f"The GGUF's tokenizer is damaged: {bad or 'no'} merge can be used.")
    # A whole word of the vocabulary is taken as it is, as Llama 3's own tokenizer does it.
    built = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=name in _LLAMA3_NAMES))
    if name in {"smollm", "starcoder"}:
        split: Any = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif name in {"gpt-2", "default"}:
        split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        pattern = Regex(QWEN2 if name == "qwen2" else LLAMA3)
        split = [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    built.pre_tokenizer = pre_tokenizers.Sequence(split)
    if name == "qwen2":
        built.normalizer = normalizers.NFC()
    built.decoder = decoders.ByteLevel()
    return built


def _sentence_piece(tokens: Sequence[str], kinds: Sequence[int], value: Value) -> Tokenizer:
    """SentencePiece's BPE: the pair whose union scores highest is merged first; unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = value("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise BadInputError("The GGUF's tokenizer is damaged: its tokens have no scores.")
    unknown = value("tokenizer.ggml.unknown_token_id")
    vocab = {token: number for number, token in enumerate(tokens)}
    plain = {t: n for t, n in vocab.items() if kinds[n] == Kind.NORMAL}
    built = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(plain, scores),
            unk_token=tokens[unknown] if unknown is not None and 0 <= unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = value("tokenizer.ggml.add_space_prefix") is not False
    space = normalizers.Replace(" ", "▁")
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return built


def _merges(plain: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """List every way to make a token of two others, the best-scored token first."""
    ranked = [
        (-scores[number], number, plain[token[:cut]], plain[token[cut:]], token[:cut], token[cut:])
        for token, number in plain.items()
        for cut in range(1, len(token))
        if token[:cut] in plain and token[cut:] in plain
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _frame(built: Tokenizer, tokens: Sequence[str], value: Value) -> None:
    """Put the beginning-of-sequence token in front where the model expects it (and the end token, where asked for)."""
    from tokenizers import processors

    default = value("tokenizer.ggml.model") == "llama" or value("tokenizer.ggml.pre") in _LLAMA3_NAMES
    asked = value("tokenizer.ggml.add_bos_token")
    bos = value("tokenizer.ggml.bos_token_id") if (default if asked is None else asked) else None
    eos = value("tokenizer.ggml.eos_token_id") if value("tokenizer.ggml.add_eos_token") else None
    marks = {number: tokens[number] for number in (bos, eos) if number is not None}
    if marks:
        # "<s>:0 $A:0" and "<s>:1 $B:1": the number is the turn that a token is counted to.
        one, two = (
            " ".join(f"{mark}:{turn}" for mark in (marks.get(bos), f"${part}", marks.get(eos)) if mark is not None)
            for turn, part in enumerate("AB")
        )
        built.post_processor = processors.TemplateProcessing(
            single=one, pair=f"{one} {two}", special_tokens=[(text, number) for number, text in marks.items()]
        )
    elif value("tokenizer.ggml.model") == "gpt2":
        built.post_processor = processors.ByteLevel(trim_offsets=False)
