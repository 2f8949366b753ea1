"""Matplotlib figures as SVG whose ink follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adaptvis_vllm.evaluation.html.page import Figure

# Stands for the page's text colour until the SVG is written; no palette colour is this one.
INK = "#010203"
# Readable on white and on near-black (after Okabe and Ito).
COLOURS = ("#3d8fd1", "#e08214", "#2ca089", "#c0609c", "#8d7cc9", "#a08c00")
WIDTH, HEIGHT = 5.6, 3.6  # inches


@contextmanager
def style() -> Iterator[Any]:
    """Draw inside this; yields `matplotlib.pyplot` on a backend that needs no screen."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context(
        {
            "figure.figsize": (WIDTH, HEIGHT),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": INK,
            "grid.alpha": 0.12,
            "axes.prop_cycle": cycler(color=COLOURS),
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "font.size": 10,
            "svg.hashsalt": "adaptvis",
        }
    ):
        matplotlib.use("agg", force=False)
        import matplotlib.pyplot as plt

        yield plt


def figure(drawn: Any, title: str, caption: str = "") -> Figure:
    """A matplotlib figure as part of a page; it is closed."""
    import matplotlib.pyplot as plt

    out = io.StringIO()
    drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(drawn)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Figure(re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL), title, caption)
