"""Placeholders that are typed text: more of them in a prompt than it has pictures.

vLLM takes the first ones for its pictures, and the others are tokens like any: an embedding of
their own, and not steered. A transformers processor takes each for a picture, and so does the
model. So the others become stand-ins here, tokens of which processor and model know nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken

_DIVIDER = "\ue001"  # of Unicode's private use


class Literals:
    """Of one model.

    processor: its tokenizer gets the stand-ins, once there is need. model: of transformers.
    tokens: by modality the token that stands for a feature (`feature_tokens`).
    """

    def __init__(self, processor: Any, model: Any, tokens: Mapping[str, int]) -> None:
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.placeholders: dict[str, str] = {}  # modality -> what the processor expands
        self.never: list[str] = []  # what only the processor writes
        for modality, token in tokens.items():
            feature = self.tokenizer.convert_ids_to_tokens(token)
            # Gemma's prompts show where an image begins; the processor writes its features.
            begins = getattr(processor, "boi_token", None) if modality == "image" else None
            named = getattr(processor, f"{modality}_token", None)
            self.placeholders[modality] = begins or named or feature
            if self.placeholders[modality] != feature:
                self.never.append(feature)
        self.tokens = dict(tokens)
        self.real: dict[int, int] = {}  # stand-in -> token
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args: (self.restore(args[0]), *args[1:])
        )

    def mark(self, text: str, counts: Mapping[str, int], divided: bool = False) -> str:
        """text with stand-ins for the typed placeholders. counts: pictures by modality.
        divided: with a token of its own behind each of the others, for `owners`."""
        divider = self._divider() if divided else ""
        left = {self.placeholders[m]: counts.get(m, 0) for m in self.placeholders}
        words = sorted({*left, *self.never}, key=len, reverse=True)

        def one(match: re.Match[str]) -> str:
            word = match.group()
            if left.get(word, 0) > 0:
                left[word] -= 1
                return word + divider
            return self._stand_in(word)

        return re.sub("|".join(map(re.escape, words)), one, text)

    def restore(self, ids: torch.Tensor) -> torch.Tensor:
        """ids, any shape, with the tokens that were typed."""
        for stand_in, token in self.real.items():
            ids = ids.masked_fill(ids == stand_in, token)
        return ids

    def owners(self, ids: Sequence[int]) -> tuple[list[int], list[str]]:
        """Of each feature in a divided prompt, which of its pictures and videos it belongs to,
        counted as they appear; and of each of these its modality."""
        divider = self.tokenizer.convert_tokens_to_ids(_DIVIDER)
        modalities = {token: modality for modality, token in self.tokens.items()}
        owner: list[int] = []
        seen: list[str] = []
        modality = ""
        for token in ids:
            if token in modalities:
                modality = modalities[token]
                owner.append(len(seen))
            elif token == divider:
                seen.append(modality)
        return owner, seen

    def _divider(self) -> str:
        self.tokenizer.add_tokens([AddedToken(_DIVIDER, special=True)])
        return _DIVIDER

    def _stand_in(self, word: str) -> str:
        """A token that splits text as word does."""
        token = self.tokenizer.convert_tokens_to_ids(word)
        name = f"\ue000{token}\ue000"  # of Unicode's private use
        if token not in self.real.values():
            like = self.tokenizer.added_tokens_decoder[token]
            flags = {f: getattr(like, f) for f in ("lstrip", "rstrip", "single_word", "normalized")}
            self.tokenizer.add_tokens([AddedToken(name, special=True, **flags)])
            self.real[self.tokenizer.convert_tokens_to_ids(name)] = token
        return name
