"""What the bystanders of steered requests get.

Run as a script with VLLM_PLUGINS="" it answers them with an engine without the plugin: model
folder, output file.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

from adaptvis_vllm import AdaptVis, ScalingVis
from support.engine import generate, make_llm, prompt, sampling

BYSTANDERS = [(i, {"max_tokens": 6, "logprobs": 5}) for i in (0, 1, 2, None)] + [
    (3, {"max_tokens": 6, "logprobs": 5, "temperature": 1.0, "seed": 7}),
    (4, {"max_tokens": 6, "logprobs": 5, "repetition_penalty": 1.3}),
]


def bystander_results(llm: Any, mixed: bool) -> list[Any]:
    """Tokens and log-probabilities of the unsteered; with steered ones between, or alone."""
    items, params, mine = [], [], []
    for image, options in BYSTANDERS:
        mine.append(len(items))
        items.append(prompt(image))
        params.append(sampling(None, **options))
        if mixed:
            items += [prompt(5), prompt(image)]
            params += [sampling(AdaptVis(0.3, 3.0, 1.0)), sampling(ScalingVis(3.0))]
    outputs = generate(llm, items, params)
    return [
        [
            (t, {k: v.logprob for k, v in step.items()})
            for t, step in zip(o.token_ids, o.logprobs, strict=True)
        ]
        for o in (outputs[i].outputs[0] for i in mine)
    ]


if __name__ == "__main__":
    llm = make_llm(Path(sys.argv[1]))
    assert not hasattr(llm.llm_engine.input_processor, "adaptvis")
    Path(sys.argv[2]).write_bytes(pickle.dumps(bystander_results(llm, mixed=False)))
