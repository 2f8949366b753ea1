"""Scoring against answers judged by hand; each rule of AdaptVis' code has cases of its own."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from adaptvis_vllm import AdaptVis, Off
from adaptvis_vllm.evaluation.answers import with_choices
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question
from adaptvis_vllm.evaluation.datasets.scoring import (
    by_group,
    check_scorer,
    contains,
    exact,
    judgement,
    load_scorer,
    pairs_and_sets,
    yes_no,
)
from adaptvis_vllm.evaluation.datasets.splits import validation_and_test
from adaptvis_vllm.evaluation.methods import chosen_methods
from adaptvis_vllm.evaluation.stats import interval, means, paired
from adaptvis_vllm.options import STEERING

A = ("left", "right", "on", "under")
B = ("left", "right", "front", "behind")
V = ("left", "right", "front", "behind", "top", "bottom", "above", "below")

# (generation, options, the options that count as an answer): judged by hand.
JUDGED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    # Plain answers, in every case and with what models put around them.
    ("left", A, "left"),
    ("Left", A, "left"),
    ("LEFT.", A, "left"),
    (" lEfT\n", A, "left"),
    ("**Right**", A, "right"),
    ("Answer: right", A, "right"),
    ("'Under'", A, "under"),
    ("On", A, "on"),
    ("ON", A, "on"),
    ("on.", A, "on"),
    ("<on>", A, "on"),
    ("\n\n\tUnder the table", A, "under"),
    # Inside other words.
    ("leftmost", A, "left"),
    ("underneath the chair", A, "under"),
    ("It is a bright day", A, "right"),
    ("a monitor", A, "on"),
    ("the mug stands alone", A, "on"),
    ("upright", A, "right"),
    ("thunder", A, "under"),
    ("a stop sign", V, "top"),
    ("in front", B, "front"),
    ("confrontation", B, "front"),
    ("the bottommost", V, "bottom"),
    # Several at once: each of them counts.
    ("left or right", A, "left right"),
    ("left, right, on or under", A, "left right on under"),
    ("not left", A, "left"),
    ("It is on the left", A, "on left"),
    ("on and under", A, "on under"),
    ("to the right, under it", A, "right under"),
    ("behind and to the left", B, "behind left"),
    ("left" * 50, A, "left"),
    # "on" does not count beside "front"; the others still do.
    ("on the front", A, ""),
    ("On, in FRONT of it", A, ""),
    ("front on", A, ""),
    ("It is on the left, in front of the chair", A, "left"),
    ("in front of the monitor", A, ""),
    ("the confrontation went on", A, ""),
    ("on the front, under it", A, "under"),
    ("on the front", B, "front"),
    ("FRONT", B, "front"),
    ("on", B, ""),
    ("fronton", A, ""),
    ("fron t on", A, "on"),
    ("f-r-o-n-t on", A, "on"),
    # Nothing that counts.
    ("", A, ""),
    (" ", A, ""),
    ("\n", B, ""),
    ("</s>", A, ""),
    ("lef t", A, ""),
    ("l e f t", A, ""),
    ("l-eft", A, ""),
    ("le\nft", A, ""),
    ("o n", A, ""),
    ("0n", A, ""),
    ("beneath", A, ""),
    ("The image shows a mug", A, ""),
    ("I cannot see it", A, ""),
    ("Yes", A, ""),
    ("A", A, ""),
    ("1", A, ""),
    ("links", A, ""),
    ("izquierda", A, ""),
    ("\u5de6", A, ""),
    ("\uff4c\uff45\uff46\uff54", A, ""),  # fullwidth letters
    ("R\u0130GHT", A, ""),  # a dotted capital I is another letter
    ("r\u0131ght", A, ""),
    ("\U0001f448", A, ""),
    ("upper", V, ""),
    ("back", B, ""),
    # Joined in ways that models produce.
    ("left/right", A, "left right"),
    ("left_right", A, "left right"),
    ("leftright", A, "left right"),
    ("Onunder", A, "on under"),
    ("\u201cunder\u201d", A, "under"),
    ("u\u0301nder", A, ""),
    ("the table is under the mug", A, "under"),
    ("above, not below", V, "above below"),
    ("on top", V, "top"),
    ("at the bottom left", V, "bottom left"),
    ("abovebelow", V, "above below"),
    ("Left\x00", A, "left"),
)

# Sentences in which {} is the only place where an option can be, and none says "front".
SENTENCES = (
    "{}",
    "{}.",
    " {} ",
    "ASSISTANT: {}",
    "**{}**",
    "The mug is {} the table",
    "{}\nThe image shows a mug.",
    "It's {}, I believe!",
    '"{}"',
    "({})",
    "x{}y",
    "Answer={}</s>",
)


def asked(*answers: str) -> Question:
    return Question("q", (), "Where?", answers)


def test_contains_on_judged_generations() -> None:
    checked = 0
    for generation, options, right in JUDGED:
        for option in options:
            expected = option in right.split()
            for answer in (option, option.title(), option.upper()):
                assert contains(asked(answer), generation) is expected, (generation, answer)
                checked += 1
    assert checked >= 900


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("options", [A, B], ids=["A", "B"])
def test_contains_only_the_word_that_is_said(sentence: str, options: tuple[str, ...]) -> None:
    for said in options:
        for write in (str.lower, str.upper, str.title):
            generation = sentence.format(write(said))
            right = [o for o in options if contains(asked(o.title()), generation)]
            assert right == [said]


def test_number_of_made_up_generations() -> None:
    made_up = {generation for generation, _, _ in JUDGED} | {
        sentence.format(write(said))
        for sentence in SENTENCES
        for said in {*A, *B}
        for write in (str.lower, str.upper, str.title)
    }
    assert len(made_up) >= 200


def test_any_of_several_answers_counts() -> None:
    question = asked("sofa", "on")
    assert contains(question, "the SOFA in front")
    assert contains(question, "on it")
    assert not contains(question, "on the front")


@pytest.mark.parametrize(
    ("generation", "yes", "no"),
    [
        ("Yes", True, False),
        ("No", False, True),
        ("Yes.", True, False),
        ("Yes, the cat is there. No doubt.", True, True),
        ("yes", False, False),
        ("no", False, False),
        ("YES", False, False),
        ("NO", False, False),
        ("Not really", False, True),
        ("None", False, True),
        ("North", False, True),
        ("Yesterday", True, False),
        ("I say Yes", True, False),
        ("The answer is No.", False, True),
        ("Y es", False, False),
        ("", False, False),
        ("maybe", False, False),
        ("true", False, False),
        ("\nNo\n", False, True),
        ("**Yes**", True, False),
        ("YesNo", True, True),
    ],
)
def test_yes_no(generation: str, yes: bool, no: bool) -> None:
    """Only the spellings "Yes" and "No" count, wherever they stand."""
    assert yes_no(asked("Yes"), generation) is yes
    assert yes_no(asked("No"), generation) is no


@pytest.mark.parametrize(
    ("generation", "right"),
    [("left", True), (" LEFT. ", True), ("left of it", False), ("lef", False), ("", False)],
)
def test_exact(generation: str, right: bool) -> None:
    assert exact(asked("Left"), generation) is right


def controlled(*cells: tuple[str, str, bool]) -> tuple[list[Question], list[bool]]:
    """(set, relation, right) each."""
    questions = [
        Question(str(i), (), "?", "x", meta={"set": (s, "chair"), "relation": r})
        for i, (s, r, _) in enumerate(cells)
    ]
    return questions, [right for _, _, right in cells]


METRICS_A = pairs_and_sets((("left", "right"), ("on", "under")))
METRICS_B = pairs_and_sets((("left", "right"), ("front", "behind")))


@pytest.mark.parametrize(
    ("right", "pair", "full"),
    [
        ("left right on under", 1.0, 1.0),
        ("left right on", 0.5, 0.0),
        ("left on", 0.0, 0.0),
        ("left right", 0.5, 0.0),
        ("on under", 0.5, 0.0),
        ("right under", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_pairs_and_sets_of_one_set(right: str, pair: float, full: float) -> None:
    questions, flags = controlled(*(("mug", r, r in right.split()) for r in A))
    assert METRICS_A(questions, flags) == {"pair": pair, "set": full}


def test_pairs_and_sets_of_several_sets() -> None:
    """Two sets of B, one all right, one with a wrong "behind": 3 of 4 pairs, 1 of 2 sets."""
    cells = [("mug", r, True) for r in B] + [("cup", r, r != "behind") for r in B]
    random.Random(0).shuffle(cells)
    assert METRICS_B(*controlled(*cells)) == {"pair": 0.75, "set": 0.5}


def test_pairs_that_a_split_tears_apart_count_as_wrong() -> None:
    """Three questions of a set, all right: 1 pair over 1.5, no set over 0.75."""
    found = METRICS_A(*controlled(*(("mug", r, True) for r in A[:3])))
    assert found == {"pair": pytest.approx(1 / 1.5), "set": 0.0}


def test_a_relation_that_occurs_twice_counts_as_answered_last() -> None:
    cells = [("mug", "left", False), ("mug", "left", True), ("mug", "right", True)]
    assert METRICS_A(*controlled(*cells))["pair"] == pytest.approx(1 / 1.5)
    cells = [("mug", "left", True), ("mug", "left", False), ("mug", "right", True)]
    assert METRICS_A(*controlled(*cells))["pair"] == 0.0


def test_judgement() -> None:
    """3 of 4 "Yes" and 1 of 2 "No": the names are those of AdaptVis' code."""
    questions = [asked("Yes")] * 4 + [asked("No")] * 2
    found = judgement(questions, [True, True, True, False, True, False])
    assert found == {"precision": 0.75, "recall": 0.5, "f1": pytest.approx(0.6)}
    assert judgement(questions[:4], [True] * 4) == {"precision": 1.0, "recall": None, "f1": None}
    assert judgement(questions, [False] * 6)["f1"] is None


def test_by_group() -> None:
    questions, flags = controlled(
        ("mug", "left", True), ("cup", "left", False), ("mug", "on", True)
    )
    assert by_group(questions, flags, "relation") == {"left": (0.5, 2), "on": (1.0, 1)}
    assert by_group(questions, flags, "colour") == {}


@pytest.mark.parametrize("count", [412, 408, 2247, 440, 1160, 291, 1222])
def test_split_is_what_the_seeded_generator_draws(count: int) -> None:
    random.seed(1)
    drawn = sorted(random.sample(range(count), int(0.2 * count)))
    splits = validation_and_test(count)
    assert list(splits["validation"]) == drawn
    assert sorted({*splits["validation"], *splits["test"]}) == list(range(count))
    assert len(splits["validation"]) + len(splits["test"]) == count


def test_scorers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorer.py").write_text(
        "LIMIT = 3\ndef short(question, generation):\n    return len(generation) < LIMIT\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorer", raising=False)
    assert load_scorer("exact") is exact
    assert load_scorer("my_scorer:short")(asked("x"), "ab") is True
    for name, message in [
        ("contain", "did you mean contains"),
        ("no_such_module_at_all:f", "cannot be imported"),
        ("my_scorer:long", "has no function 'long'"),
        ("my_scorer:LIMIT", "has no function 'LIMIT'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_scorer(name)
    assert str(tmp_path) not in sys.path


def test_a_scorer_is_tried_first() -> None:
    questions = [asked("left"), asked("on")]
    check_scorer(contains, questions)
    with pytest.raises(ValueError, match=r"--scorer failed on question q .*'': IndexError"):
        check_scorer(lambda question, text: text[0] == "l", questions)
    with pytest.raises(ValueError, match="TypeError"):
        check_scorer(lambda question: True, questions)  # type: ignore[misc, arg-type]


def test_intervals_are_those_of_the_binomial() -> None:
    """A bootstrap of n answers with accuracy p has the standard error sqrt(p (1 - p) / n)."""
    right = np.arange(400) < 240
    drawn = means(right, samples=4000)
    assert drawn.std() == pytest.approx(np.sqrt(0.6 * 0.4 / 400), rel=0.05)
    found = interval(right)
    assert found.value == 0.6
    assert found.low == pytest.approx(0.6 - 1.96 * 0.0245, abs=0.004)
    assert found.high == pytest.approx(0.6 + 1.96 * 0.0245, abs=0.004)
    assert interval(right) == found


def test_intervals_are_paired() -> None:
    """Ten mended answers and nothing else: surely a gain, although accuracies overlap."""
    base = np.arange(400) < 200
    other = np.arange(400) < 210
    gain = paired(base, other)
    assert gain.value == pytest.approx(0.025)
    assert 0 < gain.low < gain.value < gain.high
    assert interval(base).high > interval(other).low
    nothing = paired(base, base)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="no questions"):
        means(np.zeros((2, 0)))


def test_options_are_a_questions_choices() -> None:
    """Each question's own, where `choices` is asked for, and as given elsewhere."""
    asked = AdaptVis(0.5, 2.0, 0.4, options=("choices",))
    assert with_choices(asked, ["Left", "Right"]).options == ("Left", "Right")
    own = AdaptVis(0.5, 2.0, 0.4, options=("on", "under"))
    assert with_choices(own, ["Left", "Right"]) == own
    assert with_choices(Off(), []) == Off()
    for choices in ([], ["Left"]):
        with pytest.raises(ValueError, match=r"^options is 'choices', but .* no choices$"):
            with_choices(asked, choices)
    methods = chosen_methods(
        Namespace(
            **{**dict.fromkeys(STEERING), "preset": "coco", "options": "choices"}, methods=None
        ),
        Benchmark("made up", (), contains),
    )
    assert methods["adaptive"].options == ("choices",)
    assert methods["scaling"].options is None
