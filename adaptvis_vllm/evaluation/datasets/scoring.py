"""Whether a generation is right, and the figures that follow from it, as AdaptVis' code scores.

Source: github.com/shiqichen17/AdaptVis, `model_zoo/llava15.py` and `dataset_zoo/aro_datasets.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptvis_vllm.evaluation.datasets.question import Metrics, Question, Scorer
from adaptvis_vllm.steering.words import nearest


def contains(question: Question, generation: str) -> bool:
    """An answer occurs in the generation, in any case and also inside a word.

    "on" does not count in a generation that contains "front".
    """
    text = generation.lower()
    return any(
        answer.lower() in text and not (answer.lower() == "on" and "front" in text)
        for answer in question.answers
    )


def exact(question: Question, generation: str) -> bool:
    """The generation is an answer, but for case, spaces around it and a full stop at its end."""
    text = generation.strip().rstrip(".").strip().lower()
    return any(answer.strip().rstrip(".").strip().lower() == text for answer in question.answers)


def yes_no(question: Question, generation: str) -> bool:
    """The answer, "Yes" or "No", occurs in the generation in exactly this spelling.

    So "yes" is wrong, "Not sure" is a "No", and "Yes and No" is right whatever is asked.
    """
    return any(answer in generation for answer in question.answers)


SCORERS: dict[str, Scorer] = {"contains": contains, "exact": exact, "yes_no": yes_no}


def load_scorer(name: str) -> Scorer:
    """One of SCORERS, or "module:function", looked for in the working folder too."""
    if name in SCORERS:
        return SCORERS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(
            f"--scorer must be one of {', '.join(SCORERS)} or MODULE:FUNCTION, not {name!r}"
            f"{nearest(name, SCORERS, '')}"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"--scorer: {module_name!r} cannot be imported: {error}") from None
    finally:
        sys.path.pop(0)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--scorer: {module_name!r} has no function {function_name!r}")
    return function


def check_scorer(scorer: Scorer, questions: Sequence[Question]) -> None:
    """Try a scorer on right answers and on none, before answers are worked for.

    ValueError names the question on which it fails.
    """
    for question in questions:
        for text in (question.answers[0], ""):
            try:
                bool(scorer(question, text))
            except Exception as error:  # a user's function
                raise ValueError(
                    f"--scorer failed on question {question.id} and the generation {text!r}: "
                    f"{error!r:.200}"
                ) from None


def pairs_and_sets(opposites: Sequence[tuple[str, str]]) -> Metrics:
    """Metrics of the controlled What'sUp images: the same two objects in four relations.

    opposites: the two pairs of `meta["relation"]`. A pair is right if both its questions are,
    a set if all four are; `meta["set"]` says which belong together. They are counted over a
    half and a quarter of the questions, so that on a split a pair that is torn apart counts
    as wrong; a relation that occurs twice in a set counts as it is answered last.
    """

    def metrics(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float | None]:
        sets: dict[object, dict[str, bool]] = {}
        for question, is_right in zip(questions, right, strict=True):
            sets.setdefault(question.meta["set"], {})[question.meta["relation"]] = bool(is_right)
        pairs = full = 0
        for found in sets.values():
            good = [found.get(a, False) and found.get(b, False) for a, b in opposites]
            pairs += sum(good)
            full += all(good)
        count = len(questions)
        return {"pair": 2 * pairs / count, "set": 4 * full / count} if count else {}

    return metrics


def judgement(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float | None]:
    """Metrics of yes/no questions, by the names that AdaptVis' code gives them.

    precision: of the questions whose answer is "Yes", those answered rightly (elsewhere called
    sensitivity). recall: the same for "No" (specificity). f1: their harmonic mean. None where
    a figure is undefined.
    """
    precision = _share([r for q, r in zip(questions, right, strict=True) if "Yes" in q.answers])
    recall = _share([r for q, r in zip(questions, right, strict=True) if "No" in q.answers])
    f1 = None
    if precision is not None and recall is not None and precision + recall > 0:
        f1 = 2 * precision * recall / (precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1}


def by_group(
    questions: Sequence[Question], right: Sequence[bool], field: str
) -> Mapping[str, tuple[float, int]]:
    """Accuracy and number of questions for each value of `meta[field]`; none where it lacks."""
    groups: dict[str, list[bool]] = {}
    for question, is_right in zip(questions, right, strict=True):
        if field in question.meta:
            groups.setdefault(str(question.meta[field]), []).append(bool(is_right))
    return {name: (sum(found) / len(found), len(found)) for name, found in sorted(groups.items())}


def _share(right: Sequence[bool]) -> float | None:
    return sum(map(bool, right)) / len(right) if right else None
