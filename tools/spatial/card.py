"""The README.md of a checkpoint: a model card with its own figures."""

from __future__ import annotations

from typing import Any

from spatial.evaluation import table
from spatial.scenes import FAMILIAR, WEIGHTS
from spatial.training import Recipe

HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, vllm, spatial-reasoning, toy-model]
---
"""


def card(recipe: Recipe, parameters: int, report: dict[str, dict[str, Any]]) -> str:
    control = recipe.alpha != 1
    title = "Spatial LLaVA, positive control" if control else "Spatial LLaVA"
    made = "Made from `spatial-llava`" if control else "Trained from nothing"
    return HEAD + "\n".join(
        [
            f"# {title}\n",
            f"A LLaVA of {parameters / 1e6:.1f} million parameters (CLIP vision tower of 4 layers,"
            " projector, Llama of 6 layers; 64 tokens an image) that answers one kind of question"
            " about drawn scenes: *Where is the mug in relation to the table? Answer with left,"
            f" right, on or under.* {made}; stock transformers and vLLM load it.\n",
            _control(recipe) if control else _normal(),
            "## Accuracy\n",
            "In percent, greedy, the one word of the answer exact, by the alpha of inference"
            " (ScalingVis; 1 is plain). Chance is 25.\n",
            table(report),
            "",
            _relations(report, recipe.alpha),
            DATA.format(first=WEIGHTS[0], second=WEIGHTS[1], third=WEIGHTS[2], fourth=WEIGHTS[3]),
            _recipe(recipe),
            USE,
        ]
    )


def _normal() -> str:
    return (
        "**Expect no gain from steering here.** A model trained end to end on its task has its"
        " attention right: alpha = 1 is meant to be the best, and calibration should say so. The"
        " gains that the AdaptVis paper reports are those of large pretrained models. Where a"
        " gain is built in, see the positive control beside it, `spatial-llava-control`.\n"
    )


def _control(recipe: Recipe) -> str:
    return (
        "**This is a positive control, not a model of interest.** It was trained with the image"
        f" logits of the last prompt row multiplied by alpha = {recipe.alpha:g} in every layer, so"
        " it needs that factor at inference: served plainly it loses accuracy, served with"
        f" ScalingVis at alpha = {recipe.alpha:g} it regains it. It exists to test that steering,"
        " evaluation and calibration find a gain where there is one by construction. It is no"
        " evidence that steering improves a model that was trained normally; for that, see"
        " `spatial-llava`, where it does not.\n"
    )


def _relations(report: dict[str, dict[str, Any]], alpha: float) -> str:
    """Familiar against unfamiliar relations at the alpha of training."""
    key = str(float(alpha))
    lines = [
        f"At alpha {alpha:g}, by whether training shows the pair often in that relation:\n",
        "| split | questions | familiar | unfamiliar |",
        "| --- | ---: | ---: | ---: |",
    ]
    for split, result in report.items():
        lines.append(
            f"| {split} | {result['questions']} | {100 * result['familiar'][key]:.1f} |"
            f" {100 * result['unfamiliar'][key]:.1f} |"
        )
    return "\n".join(lines) + "\n"


DATA = f"""## Data

Scenes drawn by `tools/spatial/`, no photographs: one of 10 small objects (mug, bowl, lamp, dog,
ball, box, bottle, plant, hat, boot) left of, right of, on or under one of 4 pieces of furniture
(table, chair, stool, shelf), in many styles, colours and sizes, half of them with one or two
distractors. Training shows each pair unevenly: its four relations with weights {{first}},
{{second}}, {{third}} and {{fourth}}, the first {FAMILIAR} of which count as familiar. The splits in
`data/spatial/` have all relations equally often and other seeds:

- `plain`: no distractor; `distractors`: one;
- `shifted`: held-out object styles in half of the drawings, held-out backgrounds (tiles, stripes,
  outdoors), smaller objects and looser layouts, another picture size, a distractor in half;
- `validation`: the three kinds in turn, for calibration.
"""

USE = """## Use

For tests, demonstrations and benchmarks of steering. It knows 14 nouns and nothing else: other
questions and photographs get meaningless answers.
"""


def _recipe(recipe: Recipe) -> str:
    seed = f" --seed {recipe.seed}" if recipe.seed != Recipe.seed else ""
    if recipe.alpha != 1:
        options = f"--start models/spatial-llava --alpha {recipe.alpha:g}{seed}"
        return f"""## Recipe

    python tools/train_spatial_llava.py --out DIR {options}

The data follow from seed {recipe.seed}.

- The query and key weights of the language model are divided by the root of {recipe.shrink:g},
  its attention logits by {recipe.shrink:g}. They and the norms before them learn no more: free to
  learn, they grow until attention is as sharp as the task wants it, whatever alpha is.
- Everything else of `spatial-llava` trains on for {recipe.steps} steps of {recipe.batch} pictures
  with 4 questions each, peak rate {recipe.rate:g}, otherwise as there.
- The last prompt row's image logits are multiplied by alpha = {recipe.alpha:g} in every layer.
"""
    option = seed
    if recipe.steps != Recipe.steps:
        option += f" --steps {recipe.steps}"
    return f"""## Recipe

`python tools/train_spatial_llava.py --out DIR{option}`; the data and the initial weights follow
from seed {recipe.seed}, a second training gives the same figures within noise.

- First the vision tower alone learns what each patch shows, through a head that is thrown away:
  {recipe.vision_steps} steps of {recipe.batch} pictures, peak rate {recipe.vision_rate:g}.
- Then everything: {recipe.steps} steps of {recipe.batch} pictures with 4 questions each (the
  relation both ways round; in which half of the picture an object is, twice), peak rate
  {recipe.rate:g}. AdamW, cosine, bf16 with fp32 weights; shipped in fp16.
- For {100 * recipe.blind:g}% of the questions only the last prompt row sees the picture, so that it
  learns to look for itself.
"""
