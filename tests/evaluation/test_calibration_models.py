"""The command on the repository's two small models, where the truth is known.

`spatial-llava` was trained to answer such questions, so no alpha helps it. The positive control
was trained with its last row's image logits multiplied by `training_alpha` of its config.json,
which ScalingVis gives back.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from support.commands import here

from adaptvis_vllm import Off
from adaptvis_vllm.steering.preset import read_preset

ROOT = Path(__file__).parents[2]
MODEL, CONTROL = ROOT / "models/spatial-llava", ROOT / "models/spatial-llava-control"
LIMIT = os.environ.get("ADAPTVIS_TEST_CALIBRATION", "100")


def calibrate(model: Path, out: Path, *options: str) -> dict[str, Any]:
    command = ["calibrate", "--dtype", "float32"]
    command += ["--data", str(ROOT / "data/spatial"), "--model", str(model), "--max-tokens", "4"]
    command += ["--test", "shifted", "--limit", LIMIT, "--enforce-eager", "-o", str(out)]
    command += ["--kv-cache-memory-bytes", "256M", *options]
    done = here(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    return json.loads((out / "calibration.json").read_text())


def test_no_gain_where_there_is_none(tmp_path: Path) -> None:
    found = calibrate(MODEL, tmp_path / "out")
    assert found["chosen"] == "base"
    assert any("alpha = 1 is kept" in warning for warning in found["warnings"])
    assert read_preset(tmp_path / "out/preset.json") == Off()


def test_finds_the_alpha_of_training(tmp_path: Path) -> None:
    """Within one step of a grid whose steps are factors of two."""
    trained = json.loads((CONTROL / "config.json").read_text())["training_alpha"]
    grid = [trained * 2.0**step for step in range(-2, 5)]
    found = calibrate(CONTROL, tmp_path / "out", "--alphas", ",".join(map(str, grid)))
    scaling = found["candidates"][1]
    assert found["chosen"] != "base"
    assert trained / 2 <= scaling["params"]["alpha"] <= trained * 2
    assert scaling["gain"]["low"] > 0
    assert found["transfer"]["shifted"][1]["gain"]["low"] > 0
