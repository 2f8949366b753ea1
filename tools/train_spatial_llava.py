"""Train a small spatial LLaVA from nothing on drawn scenes, and score it.

    python tools/train_spatial_llava.py --out models/spatial-llava
    python tools/train_spatial_llava.py --out models/spatial-llava-control \\
        --start models/spatial-llava --alpha 4

The second trains the first one on into the positive control. Half an hour and seven minutes on
two cores. --vision keeps the vision tower of the first stage, which does not depend on --steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader forks

import torch
from spatial.card import card
from spatial.evaluation import evaluate, table
from spatial.model import load, make_model, make_processor, save
from spatial.splits import write_splits
from spatial.training import Recipe, Run, control_recipe, train

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    args = arguments()
    if not args.data.exists():
        write_splits(args.data)
        print(f"wrote the splits to {args.data}", flush=True)
    if args.out is None and args.vision is None:
        return
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    run = Run(device, args.workers, lambda line: print(line, flush=True))
    if args.start:
        recipe = control_recipe(args.alpha, args.seed)
        model, processor = load(args.start)
    else:
        recipe = Recipe(seed=args.seed, steps=args.steps if args.out else 0)
        processor = make_processor()
        model = make_model(processor.tokenizer, recipe.seed)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.2f} M parameters; {recipe}; {device}", flush=True)
    seconds = train(model, processor, recipe, run, args.vision)
    if args.out is None:
        return
    save(model, processor, args.out, recipe.alpha)
    started = time.perf_counter()
    report = evaluate(args.out, args.data, device=device)
    (args.out / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "README.md").write_text(card(recipe, count, report))
    print(table(report))
    print(f"trained in {seconds:.0f} s, scored in {time.perf_counter() - started:.0f} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = Recipe()
    parser.add_argument("--out", type=Path, help="folder of the checkpoint; without: only --vision")
    parser.add_argument("--start", type=Path, help="checkpoint to train into a positive control")
    parser.add_argument(
        "--alpha",
        type=float,
        default=recipe.alpha,
        help="of the control: factor of the last prompt row's image logits in training",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "data" / "spatial",
        help="folder of the splits, written if it is missing",
    )
    parser.add_argument(
        "--vision",
        type=Path,
        help="file of the trained vision tower: used if it exists, else written",
    )
    parser.add_argument("--workers", type=int, default=min(8, (os.cpu_count() or 1) - 1))
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0 is its default")
    args = parser.parse_args()
    if (args.start is None) != (args.alpha == 1):
        parser.error("a positive control needs both --start and an --alpha that is not 1")
    if args.start and (args.vision or args.out is None or args.steps != recipe.steps):
        parser.error("--start needs --out, and goes neither with --vision nor with --steps")
    return args


if __name__ == "__main__":
    main()
