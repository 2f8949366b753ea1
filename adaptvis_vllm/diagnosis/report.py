"""The HTML report of `adaptvis diagnose`."""

from __future__ import annotations

from adaptvis_vllm.diagnosis import plots
from adaptvis_vllm.diagnosis.heads import BLIND
from adaptvis_vllm.diagnosis.results import Diagnosis
from adaptvis_vllm.diagnosis.shares import BOXES, INSIDE, TITLES
from adaptvis_vllm.diagnosis.tables import (
    change_table,
    head_table,
    layer_table,
    measure_table,
    verdict,
)
from adaptvis_vllm.evaluation.html.page import Section, render

FEW = 20  # right or wrong answers, below which an AUROC says little
_MEASURES = (
    "Attention is that of the last prompt token, whose row writes the first token. image: its "
    "share on the picture; the rest lies on text."
)
_BOXES = (
    " boxes: its share in the boxes of the objects that the question names, a position that lies "
    "partly in them counted in part. inside: of the share on the picture, the part in the boxes. "
    "lift: inside over what an even look at the picture would have there, so that big boxes do not "
    "win by their size."
)


def page(found: Diagnosis) -> str:
    """Self-contained HTML."""
    about = _MEASURES + (_BOXES if BOXES in found.heads else "")
    sections = [
        Section(
            "What tells right from wrong",
            text=[*verdict(found), about, *found.notes],
            tables=[measure_table(found)],
        ),
        Section("By layer", tables=[layer_table(found)], figures=plots.layers(found)),
        Section(
            "By head", tables=[head_table(found)], figures=[*plots.maps(found), *plots.best(found)]
        ),
    ]
    changed = change_table(found)
    if changed is not None and found.steered is not None:
        title = f"What {found.steered.title} changed"
        sections.append(Section(title, tables=[changed], figures=plots.steering(found)))
    return render(
        f"Diagnosis: {found.benchmark}, {found.split}",
        sections,
        facts=found.facts,
        warnings=warnings(found),
    )


def warnings(found: Diagnosis) -> list[str]:
    """What a reader must know before the figures."""
    out = []
    count, known = len(found.questions), int(found.shares.boxed.sum())
    given = sum(boxes is not None for boxes in found.boxes)
    if not given:
        out.append(
            "No question has boxes: only the share on the image is known, not whether it lies on "
            "the right objects."
        )
    elif found.shares.unknown:
        out.append(
            f"The boxes are not used, only the share on the image is known: {found.shares.unknown}."
            if not known
            else f"Some boxes are not used: {found.shares.unknown}."
        )
    elif known < count:
        unseen = given - known
        text = f"{count - given} of {count} questions have no boxes"
        text += f", and of {unseen} no image position sees the boxes" * bool(unseen)
        out.append(f"{text}: shares in boxes are those of the other {known}.")
    of = found.ranked
    fewer = min(int(of.right.sum()), int((~of.right).sum()))
    if of.decided and fewer < FEW:
        kind = "right" if of.right.sum() == fewer else "wrong"
        out.append(f"Only {fewer} answers are {kind}: an AUROC says little.")
    if of.decided and of.chance > 0.05:
        out.append(
            f"No head is shown to tell right from wrong by the {TITLES[of.measure]}: dealt out by "
            f"chance, they give a best head as good in {100 * of.chance:.0f} of 100 cases."
        )
    if blind := int(of.blind.sum()):
        out.append(
            f"{blind} of {of.blind.size} heads give the image less than {100 * BLIND:g}% of their "
            "attention at the median: they are ranked last."
        )
    if of.held is not None and found.size is not None and of.measure in (BOXES, INSIDE):
        size = found.size.value
        if size >= of.held.low:
            out.append(
                f"The size of the boxes alone tells right from wrong with an AUROC of {size:.3f}: "
                f"what the {TITLES[of.measure]} tells may be that. Lift takes the size out."
            )
    return out
