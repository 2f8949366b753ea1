"""What the layers of a reference model compute."""

from __future__ import annotations

from typing import Any

import torch

from adaptvis_vllm.reference.model import ReferenceModel


class Recorder:
    """Outputs of every decoder layer's attention, and the decoder's first input."""

    def __init__(self, reference: ReferenceModel) -> None:
        decoder = reference.model.get_decoder()
        self.calls: list[list[torch.Tensor]] = []
        self.embeddings: list[torch.Tensor] = []
        self.hooks = [decoder.register_forward_pre_hook(self._input, with_kwargs=True)]
        for layer in decoder.layers:
            self.calls.append([])
            self.hooks.append(layer.self_attn.register_forward_hook(self._output(self.calls[-1])))

    def _input(self, module: Any, args: Any, kwargs: Any) -> None:
        self.embeddings.append(kwargs["inputs_embeds"][0].clone())

    @staticmethod
    def _output(calls: list[torch.Tensor]) -> Any:
        return lambda module, args, output: calls.append(output[0][0].clone())

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self.hooks:
            hook.remove()
