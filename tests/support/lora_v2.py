"""Prints what Model Runner V2, interpreted, answers with a LoRA adapter.

Run as a script: model folder, adapter folder, the adapter's rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from adaptvis_vllm.engine.runner import interpreted
from adaptvis_vllm.steering.params import AdaptVis, Candidates

STEERINGS = [AdaptVis(0.4, 2.5, 1.0), AdaptVis(0.4, 2.5, 0.0), Candidates((2.5, 0.4))]
TOKENS = 2


def main(model: Path, adapter: str, rank: int) -> None:
    from vllm.lora.request import LoRARequest

    from support.engine import make_llm, prompt, sampling

    llm = make_llm(model, enable_lora=True, max_lora_rank=rank, max_num_seqs=2)
    outputs = llm.generate(
        [prompt(0)] * 3,
        [sampling(s, logprobs=1, max_tokens=TOKENS) for s in STEERINGS],
        lora_request=LoRARequest("tiny", 1, adapter),
        use_tqdm=False,
    )
    found = []
    for output in outputs:
        answer = output.outputs[0]
        first = answer.logprobs[0][answer.token_ids[0]].logprob
        candidates = [one["token_id"] for one in output.adaptvis.get("candidates", ())]
        found.append((list(answer.token_ids), first, candidates))
    print(json.dumps(found))


if __name__ == "__main__":
    import conftest  # noqa: F401  the environment of tests

    interpreted.enable()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
