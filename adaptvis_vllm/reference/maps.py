"""Attention maps, written down from the weights of transformers' eager attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from adaptvis_vllm.maps.maps import Maps

Half: TypeAlias = npt.NDArray[np.float16]
UNKNOWN = "plain transformers does not say which part of a picture an image embedding is of"


class Watch:
    """Rows of one pass: the last of the prompt, then those of the generated tokens.

    layers: ascending. image: [P] positions of the span, ascending. length: of the prompt.
    tokens: how many rows of generated tokens to keep.
    """

    def __init__(
        self, layers: Sequence[int], image: Sequence[int], length: int, tokens: int = 0
    ) -> None:
        self.layers, self.image = list(layers), list(image)
        self.length, self.tokens = length, tokens
        self._rows: dict[int, list[npt.NDArray[np.float32]]] = {layer: [] for layer in layers}

    def see(self, layer: int, weights: torch.Tensor) -> None:
        """Called by a layer once for the prompt, and once for every generated token.

        weights: [1, heads, rows, columns]. Columns end at the query's own position: a cache of a
        sliding window holds the last ones only, and what it does not hold has no weight.
        """
        kept = self._rows.get(layer)
        if kept is None or len(kept) > self.tokens:
            return
        columns, rows = self.length + len(kept), 1 if kept else self.length
        if weights.shape[2] != rows or weights.shape[3] > columns:
            raise RuntimeError(f"layer {layer} attends as {list(weights.shape)}, not row by row")
        row = np.zeros((weights.shape[1], columns), np.float32)
        row[:, columns - weights.shape[3] :] = weights[0, :, -1].float().cpu().numpy()
        kept.append(row)

    def rows(self, first: int, last: int) -> tuple[Half, Half]:
        """Of rows first to last, without last: weights [K, L, H, P] and rest [K, L, H, 2], as
        `Maps` has them. 0 is the last prompt row, 1 that of the first generated token.

        K is less where the answer is shorter: its last token is never a query.
        """
        counts = {len(kept) for kept in self._rows.values()}
        if len(counts) != 1:
            raise RuntimeError(f"layers have different numbers of rows: {sorted(counts)}")
        steps = range(first, min(last, *counts))
        lines = (len(self.layers), len(self._rows[self.layers[0]][0]))  # L, H
        weights = np.empty((len(steps), *lines, len(self.image)), np.float16)
        rest = np.empty((len(steps), *lines, 2), np.float16)
        for k, step in enumerate(steps):
            for line, layer in enumerate(self.layers):
                weights[k, line], rest[k, line] = self._split(self._rows[layer][step])
        return weights, rest

    def _split(
        self, row: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """[H, P], towards the image; [H, 2], towards the first token and all other text."""
        text = np.ones(row.shape[1], bool)
        text[self.image] = False
        first = row[:, 0] * text[0]
        text[0] = False
        return row[:, self.image], np.stack([first, row[:, text].sum(1)], axis=1)


def maps_of(
    unsteered: Watch,
    steered: Watch | None,
    first: Sequence[int],
    sizes: Sequence[tuple[int, int]],
) -> Maps:
    """unsteered: of the pass with alpha 1, whose answer it is where there is no other. first: where
    each of the prompt's pictures and videos begins; sizes: width and height of each."""
    before, rest_before = (rows[0] for rows in unsteered.rows(0, 1))
    answer = steered or unsteered
    after = rest_after = tokens = rest_tokens = None
    if steered is not None:
        after, rest_after = (rows[0] for rows in steered.rows(0, 1))
    if answer.tokens:
        tokens, rest_tokens = answer.rows(1, 1 + answer.tokens)
    count = len(unsteered.image)
    return Maps(
        layers=np.array(unsteered.layers, np.int32),
        positions=np.array(unsteered.image, np.int32),
        image=(np.searchsorted(first, unsteered.image, side="right") - 1).astype(np.int32),
        frame=np.full(count, -1, np.int32),
        boxes=np.full((count, 4), np.nan, np.float32),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        before=before,
        rest_before=rest_before,
        after=after,
        rest_after=rest_after,
        tokens=tokens,
        rest_tokens=rest_tokens,
        unknown=UNKNOWN,
    )
