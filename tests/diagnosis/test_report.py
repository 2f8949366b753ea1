"""What a diagnosis of made-up maps says: its tables, files and page."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import all_plots_visible, measure, needs_chromium, screenshot
from support.map_cases import made_up

from adaptvis_vllm.diagnosis.command import _write
from adaptvis_vllm.diagnosis.heads import ranking
from adaptvis_vllm.diagnosis.report import page, warnings
from adaptvis_vllm.diagnosis.results import as_arrays, as_csv, as_json
from adaptvis_vllm.diagnosis.tables import change_table, layer_table, measure_table, verdict
from adaptvis_vllm.files.lines import dumps

ARTEFACTS = Path(__file__).parents[2] / "out/tests"


@pytest.fixture(scope="module")
def found() -> Any:
    return made_up()


def test_the_head_that_tells_comes_first(found: Any) -> None:
    of = found.ranked
    assert (of.measure, of.best, of.name(of.order[0])) == ("boxes", (5, 3), "5.3")
    assert of.held is not None
    assert of.held.auroc > 0.9
    assert of.chance < 0.01
    right = found.base.right[of.rows]
    values = found.shares.before["boxes"][of.rows][:, 5, 3]
    pairs = values[right][:, None] > values[~right][None]
    assert of.auroc[5, 3] == pytest.approx(pairs.mean(), abs=2e-3)
    assert of.low[5, 3] < of.auroc[5, 3] < of.high[5, 3]
    rows = np.flatnonzero([b is not None for b in found.boxes])
    assert of.rows.tolist() == rows.tolist()
    assert found.heads["image"].rows.tolist() == list(range(160))
    layer = found.layers["boxes"].auroc
    assert int(np.argmax([value.value for value in layer])) == 5


def test_the_ranking_is_a_file(found: Any) -> None:
    about = {"benchmark": "made_up", "model": "made-up"}
    given = json.loads(dumps(ranking(found.ranked, about)))
    assert given["heads"][0] == "5.3"
    assert len(set(given["heads"])) == len(given["heads"]) == 12 * 8
    assert (given["by"], given["measure"], given["model"]) == ("auroc", "boxes", "made-up")
    numbers = given["numbers"]
    assert [entry["head"] for entry in numbers] == given["heads"]
    assert [e["auroc"] for e in numbers] == sorted((e["auroc"] for e in numbers), reverse=True)
    assert numbers[0]["share_right"] > numbers[0]["share_wrong"]
    assert given["best"]["cross_validated"]["picks"] == {"5.3": 40}


def test_a_head_that_hardly_looks_is_ranked_last(found: Any) -> None:
    """However well it tells, on its own and by chance."""
    before = {name: values.copy() for name, values in found.shares.before.items()}
    for values in before.values():
        values[:, 2, 1] = 1e-6 * (1 + found.base.right)
    told = replace(found, shares=replace(found.shares, before=before))
    of = told.ranked
    assert of.auroc[2, 1] == 1
    assert (of.name(of.order[0]), of.name(of.order[-1])) == ("5.3", "2.1")
    assert np.flatnonzero(of.blind).tolist() == [2 * 8 + 1]
    assert of.held is not None
    assert of.held.picks == {5 * 8 + 3: 40}
    assert ranking(of, {})["numbers"][-1]["blind"]
    assert any("1 of 96 heads give the image less than 0.1%" in text for text in warnings(told))


def test_all_right_leaves_no_auroc_and_ranks_by_share() -> None:
    found = made_up(30, steered=False)
    base = replace(found.base, right=np.ones(30, bool))
    found = replace(found, base=base)
    given = json.loads(dumps(ranking(found.ranked, {})))
    assert given["by"] == "share"
    assert given["numbers"][0]["auroc"] is None
    shares = [entry["share"] for entry in given["numbers"]]
    assert shares == sorted(shares, reverse=True)
    assert "boxes is known are right" in " ".join(verdict(found))
    assert "<svg" in page(found)
    assert "-" in measure_table(found).text()


def test_the_numbers_of_all_files_agree(found: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(row["layer"], row["head"]) for row in rows[:9]][-1] == ("1", "0")
    table, arrays = json.loads(dumps(as_json(found))), as_arrays(found)
    for name in ("image", "boxes", "inside", "lift"):
        of = table["measures"][name]
        for row in rows:
            place = int(row["layer"]), int(row["head"])
            for field in ("auroc", "low", "high", "share", "share_right", "share_wrong"):
                assert float(row[f"{name}_{field}"]) == pytest.approx(
                    np.array(of[field])[place], rel=1e-4
                )
        mean = np.nanmean(arrays[f"{name}_before"], 0, dtype=np.float64)
        np.testing.assert_allclose(mean, of["share"], rtol=1e-4)
    changes = table["steered"]["changes"]
    assert sum(change["questions"] for change in changes.values()) == 160
    assert changes["mended"]["questions"] == found.steered.mended > 0
    moved = changes["mended"]["boxes"]
    np.testing.assert_allclose(np.array(moved["after"]), 1.2 * np.array(moved["before"]), rtol=1e-2)
    assert sum(answer["right"] for answer in table["answers"]) == found.base.right.sum()
    assert table["answers"][0]["objects"] == []
    assert table["answers"][1]["objects"] == ["mug"]


def test_tables_have_a_line_each(found: Any) -> None:
    names = [row[0] for row in measure_table(found).rows]
    assert names == ["image", "boxes", "inside", "lift", "size of the boxes"]
    assert [row[0] for row in measure_table(made_up(20, boxed=False)).rows] == ["image"]
    assert len(layer_table(found).rows) == 12
    changed = change_table(found)
    assert changed is not None
    names = [row[0] for row in changed.rows]
    assert names == ["mended", "broken", "right both times", "wrong both times"]
    assert change_table(made_up(20, steered=False)) is None


def test_big_boxes_are_found_out(found: Any) -> None:
    """Heads that all look evenly tell what the boxes' size tells, and the page says so."""
    right = found.base.right
    assert found.size.value == 0.5  # all boxes are alike here
    assert not any("size of the boxes" in warning for warning in warnings(found))
    even = found.shares.even * (1 + right)
    flat = np.broadcast_to(even[:, None, None] * 0.7, (160, 12, 8)).astype(np.float32)
    before = dict(found.shares.before) | {"boxes": flat}
    big = replace(found, shares=replace(found.shares, before=before, even=even))
    assert big.size.value == pytest.approx(1)
    assert big.ranked.auroc.min() == pytest.approx(1)
    assert any("The size of the boxes alone" in warning for warning in warnings(big))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"boxed": False}, "No question has boxes: only the share on the image is known"),
        (
            {"unknown": "its processor is not known"},
            "The boxes are not used, only the share on the",
        ),
        ({}, "6 of 60 questions have no boxes: shares in boxes are those of the other 54."),
    ],
)
def test_what_is_not_known_is_told(options: dict[str, Any], sentence: str) -> None:
    found = made_up(60, **options)
    assert any(sentence in warning for warning in warnings(found))
    assert sentence in page(found)
    assert ("boxes" in found.heads) is not bool(options)


@needs_chromium
@pytest.mark.parametrize("boxed", [True, False])
def test_the_page_in_a_browser(boxed: bool, tmp_path: Path) -> None:
    found = made_up(boxed=boxed)
    _write(tmp_path / "out", found)
    names = {"report.html", "diagnosis.json", "heads.json", "heads.csv", "shares.npz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    html = tmp_path / "out/report.html"
    text = html.read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "src=" not in text.replace('src="data:', "")
    all_plots_visible(measure(html, tmp_path), least=12 if boxed else 6)
    for dark in (False, True):
        name = f"diagnosis{'' if boxed else '-image'}{'-dark' if dark else ''}.png"
        screenshot(html, ARTEFACTS / name, tmp_path, dark=dark)
