"""`make demo`: questions about pictures, base and steered, through a real vLLM engine."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image, ImageDraw

from adaptvis_vllm import AdaptVis, Off, ScalingVis
from adaptvis_vllm import _torchvision as torchvision_repair

# Before torch and vLLM are imported: one process, which starts faster, and quiet.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
logging.getLogger("vllm").setLevel(logging.ERROR)

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "demo"
STEERING = AdaptVis(alpha_low=0.5, alpha_high=2.0, threshold=0.35)
PHOTOGRAPHS = {
    "cat": "Which way does the cat look, left or right?",
    "coffee": "Is the spoon left or right of the cup?",
    "photographer": "Is the camera left or right of the man?",
    "rocket": "Is the rocket left or right of the towers?",
}
DRAWINGS = {
    "ball-box": "Is the ball left or right of the box?",
    "cup-table": "Is the cup on or under the table?",
    "sun-house": "Is the sun left or right of the house?",
    "two-dots": "Is the red dot above or below the blue dot?",
}
QUESTIONS = PHOTOGRAPHS | DRAWINGS
MAX_TOKENS = 5


def draw(name: str) -> Image.Image:
    """One of the four drawings."""
    image = Image.new("RGB", (336, 336), "white")
    pen = ImageDraw.Draw(image)
    if name == "ball-box":
        pen.ellipse((30, 180, 120, 270), fill="red")
        pen.rectangle((190, 150, 310, 270), fill="peru", outline="black", width=4)
    elif name == "cup-table":
        pen.rectangle((40, 180, 296, 200), fill="saddlebrown")
        for x in (55, 265):
            pen.rectangle((x, 200, x + 16, 310), fill="saddlebrown")
        pen.rectangle((140, 110, 200, 180), fill="steelblue")
        pen.arc((185, 120, 230, 165), -90, 90, fill="steelblue", width=8)
    elif name == "sun-house":
        pen.rectangle((0, 250, 336, 336), fill="yellowgreen")
        pen.ellipse((30, 30, 110, 110), fill="gold")
        pen.rectangle((180, 160, 300, 260), fill="lightgray", outline="black", width=3)
        pen.polygon([(165, 160), (240, 90), (315, 160)], fill="firebrick")
    else:
        pen.ellipse((138, 40, 198, 100), fill="red")
        pen.ellipse((138, 230, 198, 290), fill="blue")
    return image


def pictures() -> dict[str, Path]:
    """Name -> file of each question's picture; drawings are written here."""
    paths = {name: HERE / "images" / f"{name}.jpg" for name in PHOTOGRAPHS}
    for name in DRAWINGS:
        paths[name] = OUT / f"{name}.png"
        draw(name).save(paths[name])
    return paths


def make_model() -> Path:
    """A small LLaVA checkpoint with seeded random weights."""
    torchvision_repair.ensure()
    from models.llava import make_llava
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return make_llava(OUT / "model", seed=3, layers=8, hidden=128, image_size=168)


def make_engine(model: Path) -> Any:
    from vllm import LLM

    return LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        kv_cache_memory_bytes=64 * 2**20,
        use_tqdm_on_load=False,
        # Off for the count below: a cached prompt schedules fewer tokens.
        enable_prefix_caching=False,
    )


def ask(llm: Any, paths: dict[str, Path]) -> tuple[dict[str, list[Any]], int]:
    """All questions three ways in one batch; (answers by way, tokens scheduled)."""
    from vllm import SamplingParams

    ways = {"base": Off(), "steered": STEERING, "alpha 1": ScalingVis(alpha=1.0)}
    jobs = [(way, name) for name in QUESTIONS for way in ways]
    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_pil", "image_pil": Image.open(paths[name]).convert("RGB")},
                    {"type": "text", "text": QUESTIONS[name]},
                ],
            }
        ]
        for _, name in jobs
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=MAX_TOKENS, extra_args=ways[way].extra_args())
        for way, _ in jobs
    ]
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, scheduled = scheduler.schedule, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal scheduled
        step = schedule(*args, **kwargs)
        scheduled += step.total_num_scheduled_tokens
        return step

    scheduler.schedule = counted
    answers: dict[str, list[Any]] = {way: [] for way in ways}
    for (way, _), output in zip(jobs, llm.chat(chats, params, use_tqdm=False), strict=True):
        answers[way].append(output)
    return answers, scheduled


def show(output: Any, width: int) -> str:
    text = " ".join(output.outputs[0].text.split())
    return f"{text if len(text) <= width else text[: width - 1] + '…':<{width}}"


def write_rows(paths: dict[str, Path]) -> Path:
    """The steered questions as an input file of `adaptvis generate`."""
    steering = {name: getattr(STEERING, name) for name in ("alpha_low", "alpha_high", "threshold")}
    lines = [
        {
            "id": name,
            "image": os.path.relpath(paths[name], OUT),
            "question": question,
            "max_tokens": MAX_TOKENS,
            "adaptvis": steering,
        }
        for name, question in QUESTIONS.items()
    ]
    file = OUT / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def main() -> None:
    started = perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    print("The model: a small LLaVA with RANDOM weights. Its answers are gibberish; what is")
    print("real is the engine (vLLM) and the steering, and that steering changes the answers.\n")
    llm = make_engine(make_model())
    paths = pictures()
    before = perf_counter()
    answers, scheduled = ask(llm, paths)
    seconds = perf_counter() - before

    print(
        f"steered: alpha = {STEERING.alpha_low} if the base answer's confidence is "
        f"< {STEERING.threshold}, else {STEERING.alpha_high}\n"
    )
    heads = f"{'picture':<14}{'question':<45}{'base':<22}{'steered':<22}confidence  alpha"
    print(heads + "\n" + "-" * len(heads))
    for name, base, steered in zip(QUESTIONS, answers["base"], answers["steered"], strict=True):
        report = steered.adaptvis
        print(
            f"{name:<14}{QUESTIONS[name]:<45}{show(base, 20)}  {show(steered, 20)}  "
            f"{report['confidence']:>10.3f}  {report['alpha']:>5}"
        )

    def tokens(way: str) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in answers[way]]

    everything = [output for outputs in answers.values() for output in outputs]
    ordinary = sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) - 1 for o in everything)
    count = len(QUESTIONS)
    changed = sum(a != b for a, b in zip(tokens("base"), tokens("steered"), strict=True))
    same = sum(a == b for a, b in zip(tokens("base"), tokens("alpha 1"), strict=True))
    print(f"\n{len(everything)} answers in one batch, {seconds:.1f} s")
    print(f"  steering changed             {changed} of {count} answers")
    print(f"  alpha 1 left as they were    {same} of {count} answers")
    print(f"  tokens computed              {scheduled} = {ordinary} ordinary", end=" ")
    print(f"+ {scheduled - ordinary} for {count} adaptive answers")
    print(f"\nthe report on each answer: {json.dumps(answers['steered'][0].adaptvis)}")

    rows = write_rows(paths)
    folder = OUT.relative_to(HERE.parent)
    print(f"""
Next:
  the same from a file   .venv/bin/adaptvis generate --model {folder}/model \\
                           --input {folder}/{rows.name} --output {folder}/answers.jsonl \\
                           --dtype float32 --enforce-eager --kv-cache-memory-bytes 64M
  your own model         the same with --model and the folder of a real LLaVA
  check this machine     .venv/bin/adaptvis doctor
  serving, Python        README.md

done in {perf_counter() - started:.0f} s""")


if __name__ == "__main__":
    if not (HERE.parent / "tests" / "models").is_dir():
        sys.exit("demo: tests/models is missing; run `make demo` in a whole checkout")
    try:
        main()
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(f"demo: {type(error).__name__}: {error}")
