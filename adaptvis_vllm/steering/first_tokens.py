"""Tokens that begin the answers of a question: `options` of `SteeringParams`.

Made in the front end, where the tokenizer is, and sent to the workers with a request's parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from adaptvis_vllm.steering.words import BadParameter, show

OPTIONS_MAX, OPTION_LENGTH_MAX = 64, 200
CHOICES = ("choices",)  # stands for the choices of each question of a file
Tokens: TypeAlias = tuple[tuple[int, ...], ...]  # of each option


def canonical_options(value: Any, full: str) -> tuple[str, ...] | None:
    """Different texts in the order given: "Left, Right" and ["Left", "Right"] both become
    ("Left", "Right"); "choices" becomes `CHOICES`, and "none" None."""
    if isinstance(value, str) and value == "none":
        return None
    items = value.split(",") if isinstance(value, str) else value
    texts = (
        tuple(item.strip() for item in items if isinstance(item, str))
        if isinstance(items, list | tuple)
        else ()
    )
    if texts == CHOICES:
        return texts
    if not (
        2 <= len(texts) == len(set(texts)) == len(items) <= OPTIONS_MAX
        and all(0 < len(text) <= OPTION_LENGTH_MAX and _is_unicode(text) for text in texts)
    ):
        raise BadParameter(
            f"{full} must be 2 to {OPTIONS_MAX} different answers such as 'Left,Right', or a list "
            f"of them, each a text of at most {OPTION_LENGTH_MAX} characters, or 'choices' for "
            f"files of questions, or 'none', not {show(value)}",
            "options",
        )
    return texts


def first_tokens(tokenizer: Any, options: Sequence[str], full: str = "options") -> Tokens:
    """For each option the tokens with which it and no other one begins, ascending.

    tokenizer: of vLLM or transformers. An option begins as given, in lower case and capitalised,
    each with and without a leading space. BadParameter, whose name is `full`, for an option that
    is left without a token.
    """
    if tuple(options) == CHOICES:
        raise BadParameter(
            f"{full} is 'choices', which stands for the choices of a file of questions: give the "
            "answers themselves",
            "options",
        )
    if tokenizer is None:
        raise BadParameter(f"{full} needs the model's tokenizer, which the engine lacks", "options")
    found = [_begins(tokenizer, option) for option in options]
    shared = Counter(token for tokens in found for token in tokens)
    own = tuple(tuple(sorted(t for t in tokens if shared[t] == 1)) for tokens in found)
    for option, tokens in zip(options, own, strict=True):
        if not tokens:
            raise BadParameter(
                f"{full}: {show(option)} begins with no token of its own among {show(options)}",
                "options",
            )
    return own


def write_tokens(tokens: Tokens) -> str:
    """As text, for a request's parameters: "12,13;7"."""
    return ";".join(",".join(map(str, some)) for some in tokens)


def read_tokens(text: str) -> Tokens:
    return tuple(tuple(map(int, some.split(","))) for some in text.split(";"))


def _begins(tokenizer: Any, option: str) -> set[int]:
    forms = {option, option.lower(), option[0].upper() + option[1:]}
    spelt = [tokenizer.encode(s + f, add_special_tokens=False) for f in forms for s in ("", " ")]
    return {ids[0] for ids in spelt if ids}


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
