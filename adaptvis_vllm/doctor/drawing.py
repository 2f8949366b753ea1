"""Image positions drawn over the tokens of a prompt, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

WIDTH = 96
RUNS = 6  # more runs of image positions than this are shown by the first and the last few


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as "4-15, 17-20"; many ranges by the first and the last of them."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in found]
    if len(texts) > RUNS:
        texts[RUNS // 2 : -1] = [f"... {len(texts) - RUNS // 2 - 1} more ..."]
    return ", ".join(texts)


def draw(tokens: Sequence[int], positions: Sequence[int], tokenizer: Any) -> list[str]:
    """Lines of the prompt's text, each run of image positions as "[token x count]".

    tokens: of the prompt. positions: which of them are image positions.
    """
    marked = set(positions)
    runs: list[tuple[str, bool]] = []  # text, whether of image positions
    for inside, places in groupby(range(len(tokens)), marked.__contains__):
        ids = [tokens[i] for i in places]
        if not inside:
            runs.append((_text(ids, tokenizer), False))
            continue
        for token, same in groupby(ids):
            runs.append((f"[{_text([token], tokenizer)} x {len(list(same))}]", True))
    images = [i for i, (_, inside) in enumerate(runs) if inside]
    if len(images) > RUNS:
        left_out = len(images) - RUNS // 2 - 1
        runs[images[RUNS // 2] : images[-1]] = [(f" ... {left_out} more ... ", False)]
    return textwrap.wrap(
        "".join(text for text, _ in runs),
        WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        drop_whitespace=False,
    )


def _text(tokens: Sequence[int], tokenizer: Any) -> str:
    text = str(tokenizer.decode(list(tokens), skip_special_tokens=False))
    return text.replace("\n", "\\n")
