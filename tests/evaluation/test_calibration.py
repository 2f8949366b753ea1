"""Calibration without an engine: every setting offline, selection, plots, refusals."""

from __future__ import annotations

from dataclasses import replace
from html import unescape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.calibration_cases import (
    ALPHAS,
    flat,
    made_up,
    one_alpha,
    questions,
    two_alphas,
    write_questions,
)

from adaptvis_vllm import AdaptVis, Off, ScalingVis, cli
from adaptvis_vllm.evaluation.calibration import plots, report
from adaptvis_vllm.evaluation.calibration.command import splits
from adaptvis_vllm.evaluation.calibration.curves import reliability, risk_coverage
from adaptvis_vllm.evaluation.calibration.grid import GAP, adaptive_sums, best, thresholds
from adaptvis_vllm.evaluation.calibration.selection import calibrate, cross_validate, describe
from adaptvis_vllm.evaluation.calibration.sweep import Sweep, check_alphas, requests
from adaptvis_vllm.evaluation.datasets.own import from_path
from adaptvis_vllm.evaluation.table import SweepTable
from adaptvis_vllm.steering.fields import CONFIDENCES

# -- every setting offline --------------------------------------------------------------


def test_thresholds_divide_the_questions_in_every_way() -> None:
    """One a gap, clear of both sides, and as short as that allows."""
    confidence = np.array([0.7, 0.2, 0.2, 0.5, 0.50001, 0.500011, 0.9], np.float32)
    found = thresholds(confidence)
    below = [int((confidence < np.float32(t)).sum()) for t in found]
    assert below == [2, 3, 5, 6]  # none between 0.50001 and 0.500011, which GAP joins
    assert found.tolist() == [0.4, pytest.approx(0.500005, abs=3e-6), 0.6, 0.8]
    away = np.abs(found[:, None] - confidence[None].astype(np.float64)).min(1)
    assert (away > GAP / 5).all()
    assert len(thresholds(np.full(9, 0.3, np.float32))) == 0


def test_adaptive_sums_are_what_each_setting_scores() -> None:
    """Against the definition, setting by setting, for all measures."""
    table = made_up(40, two_alphas, seed=3)
    for kind in CONFIDENCES:
        at = thresholds(table.confidences[kind])
        sums = adaptive_sums(table.scores, table.confidences[kind], at)
        assert sums.shape == (39, len(ALPHAS), len(ALPHAS))
        for k, low, high in product(range(0, 39, 6), range(0, 8, 2), range(8)):
            params = AdaptVis(ALPHAS[low], ALPHAS[high], float(at[k]), confidence=kind)
            assert sums[k, low, high] == pytest.approx(table.scores_of(params).sum())
    assert table.scores_of(Off()).tolist() == table.scores[:, 3].tolist()
    assert table.scores_of(ScalingVis(4.0)).tolist() == table.scores[:, 7].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_best_is_the_best_of_all(seed: int) -> None:
    table = made_up(12, two_alphas, seed=seed)
    found = best(table.scores, table.confidences, table.alphas)
    top = max(
        table.scores_of(AdaptVis(low, high, float(t), confidence=kind)).sum()
        for kind in CONFIDENCES
        for t in thresholds(table.confidences[kind])
        for low, high in product(ALPHAS, ALPHAS)
        if low != high
    )
    assert table.scores_of(found.steering("adaptive", table)).sum() == pytest.approx(top)
    assert table.scores[:, found.scaling].sum() == table.scores.sum(0).max()


def test_equals_go_to_the_alphas_nearest_one_and_the_middle_of_the_plateau() -> None:
    confidence = np.linspace(0.05, 0.95, 10).astype(np.float32)
    scores = np.zeros((10, len(ALPHAS)))
    scores[:3, [0, 1]] = 1  # 0.25 and 0.5 mend the three least certain
    scores[3:7] = 1  # these are always right: thresholds from 0.3 to 0.7 are equal
    scores[7:, [6, 7]] = 1  # 2 and 4 mend the most certain
    scores[7:, [0, 1]] = 0
    table = SweepTable(
        list("abcdefghij"), ALPHAS, [[""] * 8] * 10, scores, dict.fromkeys(CONFIDENCES, confidence)
    )
    found = best(table.scores, table.confidences, table.alphas)
    assert found.steering("adaptive", table) == AdaptVis(0.5, 2.0, 0.5)
    assert found.measure == "max_prob"


def test_settings_that_were_not_swept_are_refused() -> None:
    table = made_up(8, flat(0.5))
    for params in (
        ScalingVis(3.0),
        AdaptVis(0.5, 3.0, 0.5),
        ScalingVis(2.0, layers="0-1"),
        AdaptVis(0.5, 2.0, 0.5, confidence_decimals=2),
        ScalingVis(2.0, span="interval"),
        ScalingVis(2.0, heads="0.1"),
        ScalingVis(2.0, rule="add_log"),
    ):
        with pytest.raises(ValueError, match="not swept"):
            table.chosen(params)


# -- selection --------------------------------------------------------------------------


def test_finds_a_gain_of_two_alphas() -> None:
    found = calibrate(made_up(400, two_alphas, seed=1))
    params = found.chosen.params
    assert found.chosen.family == "adaptive"
    assert (params.alpha_low, params.alpha_high, params.confidence) == (0.5, 2.0, "margin")
    assert params.threshold == pytest.approx(0.4, abs=0.03)
    assert found.chosen.gain.low > 0.15
    assert found.warnings == ()


def test_finds_a_gain_of_one_alpha_and_prefers_it_to_two() -> None:
    found = calibrate(made_up(400, one_alpha, seed=2))
    assert found.chosen.params == ScalingVis(2.0)
    assert 0.15 < found.chosen.accuracy.value - 0.6 < 0.3
    # On the questions that it was chosen on, an adaptive setting looks at least as good.
    assert found.candidate("adaptive").seen.value >= found.chosen.seen.value


def test_keeps_alpha_one_where_nothing_is_gained() -> None:
    """Every other alpha costs something; noise finds a better setting on the seen questions."""

    def worse(c: Any) -> Any:
        out = np.full((len(c["margin"]), len(ALPHAS)), 0.75)
        out[:, 3] = 0.8
        return out

    found = calibrate(made_up(400, worse, seed=0))
    assert found.chosen.params == Off()
    assert "alpha = 1 is kept" in found.warnings[0]


def test_noise_is_not_mistaken_for_gain() -> None:
    """Coin tosses: the seen accuracy of the best of 200,000 settings is far above 50%, the
    cross-validated one is not, so no held-out score takes part in its own setting's choice."""
    seen, held, kept = [], [], 0
    for seed in range(5):
        table = made_up(200, flat(0.5), seed=seed, alike=0.0)
        whole = best(table.scores, table.confidences, table.alphas)
        seen.append(table.scores_of(whole.steering("adaptive", table)).mean())
        held.append(cross_validate(table, folds=5, repeats=2, seed=0)[2].mean())
        kept += calibrate(table, repeats=2).chosen.family == "base"
    assert min(seen) > 0.56
    assert abs(np.mean(held) - 0.5) < 3 * 0.5 / np.sqrt(5 * 200)
    assert kept >= 4


def test_gain_within_noise_and_few_questions_are_warned_of() -> None:
    found = calibrate(made_up(30, two_alphas, seed=4))
    assert any(w.startswith("30 questions are few") for w in found.warnings)
    assert found.resolution > 0.08
    tiny = calibrate(made_up(1, flat(1.0)))
    assert tiny.chosen.params == Off()
    assert any("wrongly" in w for w in tiny.warnings)


def test_an_alpha_at_the_end_of_the_grid_is_warned_of() -> None:
    def rising(c: Any) -> Any:
        return np.tile(np.linspace(0.3, 0.9, len(ALPHAS)), (len(c["margin"]), 1))

    found = calibrate(made_up(300, rising, seed=5))
    assert found.chosen.params.mode != "off"
    assert any("end of the grid" in w for w in found.warnings)


# -- curves, plots, page ----------------------------------------------------------------


def by_hand() -> SweepTable:
    scores = np.array([[1, 1], [0, 1], [1, 0], [1, 1]], float)
    confidence = np.array([0.9, 0.5, 0.5, 0.7], np.float32)
    return SweepTable(
        list("abcd"),
        np.array([1.0, 2.0]),
        [["", ""]] * 4,
        scores,
        dict.fromkeys(CONFIDENCES, confidence),
    )


def test_curves_by_hand() -> None:
    curve = risk_coverage(by_hand(), "max_prob")
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    # The two at 0.5 are one group: half a wrong answer each.
    assert curve.risk.tolist() == pytest.approx([0, 0, 0.5 / 3, 0.25])
    found = reliability(by_hand())
    assert found.count.tolist() == [1, 1, 1, 1]
    assert found.error == pytest.approx((0.5 + 0.5 + 0.3 + 0.1) / 4, abs=1e-6)


def outcome(table: SweepTable) -> report.Outcome:
    return report.Outcome(
        "made up",
        "validation",
        questions(len(table.ids)),
        Sweep(table, 1000, 1600),
        calibrate(table, repeats=2),
        {},
        {},
    )


@pytest.mark.parametrize("table", [made_up(120, two_alphas, seed=1), by_hand()], ids=["120", "4"])
def test_page_shows_every_plot(table: SweepTable) -> None:
    drawn = plots.draw(table, best(table.scores, table.confidences, table.alphas))
    assert list(drawn) == [
        "alpha", "heatmap", "confidence", "threshold", "risk_coverage", "reliability",
    ]  # fmt: skip
    found = outcome(table)
    page = unescape(report.page(found, drawn))
    assert page.count("<svg") == len(drawn)
    assert all(figure.title in page for figure in drawn.values())
    assert "1.60 times the 1,000" in page
    assert report.verdict(found) in page
    content = report.as_json(found)
    assert len(content["answers"]) == len(table.ids)
    best_of_all = max(np.max(m["accuracy"]) for m in content["measures"].values())
    assert best_of_all >= max(content["accuracy_by_alpha"])


def test_plots_without_a_threshold() -> None:
    """Where no confidence tells questions apart there are no adaptive settings."""
    table = by_hand()
    same = dict.fromkeys(CONFIDENCES, np.full(4, 0.5, np.float32))
    table = SweepTable(table.ids, table.alphas, table.texts, table.scores, same)
    found = best(table.scores, table.confidences, table.alphas)
    assert "heatmap" not in plots.draw(table, found)
    assert calibrate(table).candidate("adaptive").params == Off()


def with_heads(table: SweepTable, heads: str | None, rule: str = "multiply") -> SweepTable:
    return replace(table, heads=heads, rule=rule)


def test_finds_the_heads_that_help() -> None:
    """All heads help nobody; two of them do, and the setting names them."""
    every = made_up(400, flat(0.6), seed=6)
    some = with_heads(made_up(400, one_alpha, seed=6), "0.1,2.3")
    some.scores[:, some.plain] = every.scores[:, every.plain]
    found = calibrate(every, some)
    assert found.chosen.params == ScalingVis(2.0, heads="0.1,2.3")
    assert (found.chosen.variant, found.variant) == (1, 1)
    assert found.chosen.gain.low > 0.1
    assert describe(found.chosen.params) == "alpha = 2, 2 heads"
    again = calibrate(some, with_heads(every, None, "add_log"))
    assert again.chosen.params == ScalingVis(2.0, heads="0.1,2.3")


def test_many_heads_that_do_nothing_are_noise() -> None:
    """The best of nine tables looks good where it was chosen, and is not kept."""
    tables = [with_heads(made_up(100, flat(0.6), seed=s), f"{s}.0") for s in range(9)]
    for table in tables:
        table.scores[:, table.plain] = tables[0].scores[:, tables[0].plain]
    found = calibrate(*tables)
    assert found.chosen.params == Off()
    assert found.candidate("scaling").seen.value > found.candidate("scaling").accuracy.value


def test_tables_of_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="not swept on the same questions"):
        calibrate(made_up(8, flat(0.5)), made_up(9, flat(0.5)))


# -- requests and refusals --------------------------------------------------------------


@pytest.mark.parametrize("alphas", [(0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 2.0)])
def test_requests_cover_alphas_and_measures(alphas: tuple[float, ...]) -> None:
    sent = requests(alphas)
    assert sent[0] == (1.0, Off())
    assert {alpha for alpha, _ in sent} == set(alphas)
    probes = [(a, s) for a, s in sent if s.mode == "adaptive"]
    assert sorted(s.confidence for _, s in probes) == sorted(CONFIDENCES)
    assert all(s.alpha_low == s.alpha_high == a for a, s in probes)
    assert len(sent) == max(len(alphas), 4)


def test_splits(tmp_path: Path) -> None:
    for name in ("validation", "plain", "shifted"):
        write_questions(tmp_path, name, 2)
    folder, single = from_path(tmp_path), from_path(tmp_path / "plain.jsonl")
    assert splits(folder, None, None) == ("validation", ["plain", "shifted"])
    assert splits(folder, "plain", "shifted,validation") == ("plain", ["shifted", "validation"])
    assert splits(folder, "all", None) == ("all", [])
    assert splits(folder, None, "none") == ("validation", [])
    assert splits(single, None, None) == ("all", [])
    for test in ("validation", "nowhere"):
        with pytest.raises(ValueError, match="no such split apart from validation"):
            splits(folder, None, test)
    with pytest.raises(ValueError, match="has no split 'nowhere'"):
        splits(folder, "nowhere", None)
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"--split is needed: .* has plain, shifted"):
        splits(from_path(tmp_path), None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alphas", "0.5,x"], "--alphas must be numbers with commas, not '0.5,x'"),
        (["--alphas", "0.5,0"], "alpha must be a number greater than 0"),
        (["--alphas", "1"], "alphas must hold another value than 1"),
        (["--layers", "x"], "layers must be layer numbers"),
        (["--rule", "pai"], "--rule must be among multiply, add_log, not 'pai'"),
        (["--heads", "17.3"], "--heads must be a ranking of heads and how many of it"),
        (["--heads", "DATA/none.json:8"], "heads: DATA/none.json cannot be read"),
        (["--rule", "add_log", "--save-answers", "DATA/a.jsonl"], "--rule is swept on an engine"),
        (["--test", "nowhere"], "no such split apart from validation"),
        (["--split", "nowhere"], "has no split 'nowhere'"),
        (["--test-answers", "DATA/other.jsonl"], "--test-answers needs --answers"),
        (["--save-answers", "DATA/none/a.jsonl"], "--save-answers: no such folder DATA/none"),
        (["--limit", "0"], "--limit must be >= 1"),
        (["--output", "DATA/none/out"], "must be a folder, new or not, in one that exists"),
        (["--output", "DATA/validation.jsonl"], "must be a folder, new or not"),
        (["--data", "DATA/none"], "no such file or folder"),
        (["--dataset", "controled_a"], "did you mean controlled_a"),
    ],
    ids=lambda value: value[0] + value[1][-4:] if isinstance(value, list) else None,
)
def test_bad_input_is_refused_before_an_engine_starts(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_questions(tmp_path, "validation", 1)
    write_questions(tmp_path, "other", 1)
    options = [o.replace("DATA", str(tmp_path)) for o in options]
    message = message.replace("DATA", str(tmp_path))
    data = ["--data", str(tmp_path), "--model", "none", "--output", str(tmp_path / "out")]
    assert cli.main(["calibrate", *data, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("adaptvis calibrate: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_picture_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_questions(tmp_path, "validation", 2)
    for n in range(2):
        (tmp_path / f"validation-{n}.png").unlink()
    data = ["--data", str(tmp_path), "--output", str(tmp_path / "out")]
    assert cli.main(["calibrate", *data]) == 1
    assert "--model is needed" in capsys.readouterr().err
    assert cli.main(["calibrate", *data, "--model", "none"]) == 1  # pictures come before models
    assert "question validation-1: image: no such file" in capsys.readouterr().err


def test_alphas_are_sorted_and_hold_one() -> None:
    assert check_alphas([2, 0.5, 2]) == (0.5, 1.0, 2.0)
