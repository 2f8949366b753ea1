"""lm-eval-harness' `vllm-vlm`: vllm_vlm.py MODEL STEERING LIMIT, STEERING as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from adaptvis_vllm.engine.metrics import totals


def main(model: str, steering: str, limit: str) -> None:
    results = lm_eval.simple_evaluate(
        model="vllm-vlm",
        model_args={
            "pretrained": model,
            "dtype": "float32",
            "kv_cache_memory_bytes": 2**28,
            "additional_config": {"adaptvis": json.loads(steering)},
        },
        tasks=["spatial"],
        task_manager=TaskManager(include_path=str(Path(__file__).parent)),
        apply_chat_template=True,
        batch_size="auto",
        limit=int(limit),
    )
    print(make_table(results))
    print("steered:", totals()["requests"])


if __name__ == "__main__":
    main(*sys.argv[1:])
