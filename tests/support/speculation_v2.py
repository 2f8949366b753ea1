"""The command `adaptvis` on Model Runner V2, interpreted, with n-gram drafts made in Python.

Triton's interpreter does not run the kernel that looks them up. Their scheduling, their
verification and the steering are what a GPU runs. Says at the end how many were accepted.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from adaptvis_vllm import _torchvision
from adaptvis_vllm.engine.runner import interpreted

accepted = 0


def propose(
    self: Any, input_batch: Any, *given: Any, dummy_run: bool = False, **_: Any
) -> torch.Tensor:
    """Of `NgramGPUSpeculator`: what followed the last token where it occurred before.

    Returns [num_reqs, drafts] int64.
    """
    global accepted
    drafts = self.drafts[: input_batch.num_reqs]
    if dummy_run:
        return drafts
    num_sampled = given[4]
    accepted += int((num_sampled - 1).clamp(min=0).sum())
    for line, slot in enumerate(input_batch.idx_mapping.tolist()):
        length = int(self.req_states.total_len.gpu[slot])
        tokens = self.req_states.all_token_ids.gpu[slot, :length].tolist()
        drafts[line] = tokens[-1]
        before = [p for p in range(length - 1) if tokens[p] == tokens[-1]]
        if before:
            found = tokens[before[-1] + 1 :][: drafts.shape[1]]
            drafts[line, : len(found)] = torch.tensor(found)
    return drafts


if __name__ == "__main__":
    interpreted.enable()
    _torchvision.ensure()
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    NgramGPUSpeculator.propose = propose
    from adaptvis_vllm.cli import main

    status = main(sys.argv[1:])
    print(f"accepted drafts: {accepted}", file=sys.stderr)
    sys.exit(status)
