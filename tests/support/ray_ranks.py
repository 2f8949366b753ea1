"""Answers of an engine whose two ranks are Ray actors: `ray_ranks.py MODEL OUT`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from adaptvis_vllm import AdaptVis
from adaptvis_vllm.cluster.session import connected
from support.engine import close, generate, make_llm, prompt, sampling
from support.http_server import QUESTION
from support.serve_load import PICTURES, TOKENS


def pid(_: Any) -> int:
    return os.getpid()


if __name__ == "__main__":
    params = sampling(AdaptVis(preset="controlled_a"), max_tokens=TOKENS, ignore_eos=True)
    prompts = [prompt(picture, QUESTION) for picture in PICTURES]
    with connected(None, cpus=2, object_store=2**27):
        llm = make_llm(
            Path(sys.argv[1]), tensor_parallel_size=2, distributed_executor_backend="ray"
        )
        outputs = generate(llm, prompts, [params] * len(prompts))
        results = {
            "pids": llm.collective_rpc(pid),
            "answers": [[list(o.outputs[0].token_ids), o.adaptvis] for o in outputs],
        }
        close(llm)
    Path(sys.argv[2]).write_text(json.dumps(results))
