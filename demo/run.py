"""`make demo`: questions about pictures, base and steered, through a real vLLM engine."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from adaptvis_vllm import AdaptVis, Off, ScalingVis, SteeringParams
from adaptvis_vllm import _torchvision as torchvision_repair

# Before torch and vLLM are imported: one process, which starts faster, and quiet.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
logging.getLogger("vllm").setLevel(logging.ERROR)

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data" / "spatial"
MODEL = ROOT / "models" / "spatial-llava"
CONTROL = ROOT / "models" / "spatial-llava-control"
OUT = ROOT / "out" / "demo"
STEERING = AdaptVis(alpha_low=0.5, alpha_high=2.0, threshold=0.8)
SHOWN, ASKED = 12, 100
MAX_TOKENS = 4

Row = dict[str, Any]


def read(split: str, count: int) -> list[Row]:
    """The first questions of a split; `image` becomes a full path."""
    lines = (DATA / f"{split}.jsonl").read_text().splitlines()[:count]
    return [row | {"image": DATA / row["image"]} for row in map(json.loads, lines)]


def make_engine(model: Path) -> Any:
    from vllm import LLM

    return LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=64 * 2**20,
        use_tqdm_on_load=False,
        # Off for the count below: a cached prompt schedules fewer tokens.
        enable_prefix_caching=False,
    )


def close(llm: Any) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def ask(llm: Any, rows: Sequence[Row], ways: dict[str, SteeringParams]) -> dict[str, list[Any]]:
    """All questions in all ways in one batch; outputs by way, in the rows' order."""
    from vllm import SamplingParams

    chats, params = [], []
    for row in rows:
        picture = Image.open(row["image"]).convert("RGB")
        content = [
            {"type": "image_pil", "image_pil": picture},
            {"type": "text", "text": row["question"]},
        ]
        for steering in ways.values():
            chats.append([{"role": "user", "content": content}])
            extra = steering.extra_args()
            params.append(SamplingParams(temperature=0, max_tokens=MAX_TOKENS, extra_args=extra))
    outputs = llm.chat(chats, params, use_tqdm=False)
    return {way: outputs[i :: len(ways)] for i, way in enumerate(ways)}


def counted(llm: Any) -> dict[str, int]:
    """Counts the tokens that the engine's scheduler lets compute from now on."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, count = scheduler.schedule, {"tokens": 0}

    def counting(*args: Any, **kwargs: Any) -> Any:
        step = schedule(*args, **kwargs)
        count["tokens"] += step.total_num_scheduled_tokens
        return step

    scheduler.schedule = counting
    return count


def text(output: Any) -> str:
    return output.outputs[0].text.strip()


def right(rows: Sequence[Row], outputs: Sequence[Any]) -> int:
    return sum(text(out) == row["answer"] for row, out in zip(rows, outputs, strict=True))


def show_answers(rows: Sequence[Row], answers: dict[str, list[Any]]) -> None:
    heads = f"{'picture':<13}{'question':<24}{'truth':<8}{'base':<8}{'steered':<9}confidence  alpha"
    print(heads + "\n" + "-" * len(heads))
    for row, base, steered in zip(rows, answers["base"], answers["steered"], strict=True):
        report = steered.adaptvis
        question = f"{row['subject']} to {row['reference']}?"
        print(
            f"{row['id']:<13}{question:<24}{row['answer']:<8}{text(base):<8}{text(steered):<9}"
            f"{report['confidence']:>10.3f}  {report['alpha']:>5}"
        )


def show_model() -> None:
    llm = make_engine(MODEL)
    rows = read("shifted", ASKED)
    ways = {"base": Off(), "steered": STEERING, "alpha 1": ScalingVis(alpha=1.0)}
    count, before = counted(llm), perf_counter()
    answers = ask(llm, rows, ways)
    seconds = perf_counter() - before
    close(llm)
    print(f"Model: {MODEL.name}. Its questions read: {rows[0]['question']}")
    print(
        f"steered: alpha = {STEERING.alpha_low} where the base answer's confidence is "
        f"< {STEERING.threshold}, else {STEERING.alpha_high}\n"
    )
    show_answers(rows[:SHOWN], {way: outputs[:SHOWN] for way, outputs in answers.items()})

    def tokens(way: str) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in answers[way]]

    everything = [output for outputs in answers.values() for output in outputs]
    ordinary = sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) - 1 for o in everything)
    changed = sum(a != b for a, b in zip(tokens("base"), tokens("steered"), strict=True))
    same = sum(a == b for a, b in zip(tokens("base"), tokens("alpha 1"), strict=True))
    extra = count["tokens"] - ordinary
    print(f"\n{len(everything)} answers in one batch, {seconds:.1f} s; of {ASKED} questions")
    print(f"  right                        base {right(rows, answers['base'])}", end=", ")
    print(f"steered {right(rows, answers['steered'])}")
    print(f"  steering changed             {changed} answers")
    print(f"  alpha 1 left as they were    {same} answers")
    print(f"  tokens computed              {count['tokens']} = {ordinary} ordinary", end=" ")
    print(f"+ {extra} for {ASKED} adaptive answers")
    print("A few answers more or less are chance: trained for just this task, the model gains")
    print(f"nothing from steering ({MODEL.relative_to(ROOT)}/README.md).")
    print(f"\nthe report on each answer: {json.dumps(answers['steered'][0].adaptvis)}\n")


def show_control() -> None:
    alpha = json.loads((CONTROL / "config.json").read_text())["training_alpha"]
    llm = make_engine(CONTROL)
    rows = read("distractors", ASKED)
    answers = ask(llm, rows, {"base": Off(), "steered": ScalingVis(alpha=alpha)})
    close(llm)
    print(f"Positive control: {CONTROL.name}, which needs alpha = {alpha}, as it was trained with")
    print(f"  right of {ASKED}                 base {right(rows, answers['base'])}", end=", ")
    print(f"steered {right(rows, answers['steered'])}")
    print("It shows that steering acts, not that it improves a model that was trained normally.")


def write_rows(rows: Sequence[Row]) -> Path:
    """Steered questions as an input file of `adaptvis generate`."""
    steering = {name: getattr(STEERING, name) for name in ("alpha_low", "alpha_high", "threshold")}
    lines = [
        {
            "id": row["id"],
            "image": os.path.relpath(row["image"], OUT),
            "question": row["question"],
            "max_tokens": MAX_TOKENS,
            "adaptvis": steering,
        }
        for row in rows
    ]
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def main() -> None:
    started = perf_counter()
    torchvision_repair.ensure()
    show_model()
    show_control()
    rows = write_rows(read("shifted", ASKED)).relative_to(ROOT)
    model = MODEL.relative_to(ROOT)
    print(f"""
Next:
  the same from a file   .venv/bin/adaptvis generate --model {model} \\
                           --input {rows} --output {rows.parent}/answers.jsonl \\
                           --dtype float32 --enforce-eager --kv-cache-memory-bytes 64M
  your own model         the same with --model and a real LLaVA
  check this machine     .venv/bin/adaptvis doctor
  serving, Python        README.md

done in {perf_counter() - started:.0f} s""")


if __name__ == "__main__":
    for needed in (DATA, MODEL, CONTROL):
        if not needed.is_dir():
            sys.exit(f"demo: {needed.relative_to(ROOT)} is missing; run it in a whole checkout")
    try:
        main()
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(f"demo: {type(error).__name__}: {error}")
