"""One picture per result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptvis_vllm.bench.throughput import say


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG; says so and does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        say("matplotlib is not installed: no plot")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6))
    _DRAW[result["kind"]](axis, result["rows"], result)
    axis.set_title(result["title"], fontsize=9)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axis: Any, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    key = "ratio" if "ratio" in rows[0] else "requests_per_s"
    values = [row[key] for row in rows]
    below = [row[key] - row[f"{key}_min"] for row in rows]
    above = [row[f"{key}_max"] - row[key] for row in rows]
    names = [row["system"] for row in rows]
    axis.barh(names, values, xerr=[below, above], color="tab:blue", ecolor="black", height=0.6)
    axis.invert_yaxis()
    for place, value in enumerate(values):
        axis.text(0.01, place, f"{value:.3f}", va="center", color="white", fontsize=8)
    axis.set_xlabel("requests/s, of vanilla's" if key == "ratio" else "requests/s")


def _line(axis: Any, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]
        axis.errorbar(
            [row["x"] for row in mine],
            [row["ratio"] for row in mine],
            [
                [row["ratio"] - row["ratio_min"] for row in mine],
                [row["ratio_max"] - row["ratio"] for row in mine],
            ],
            fmt="o-",
            capsize=3,
            label=system,
        )
    axis.set(xlabel=result["x"], ylabel="requests/s, of vanilla's")
    axis.legend(fontsize=8)


def _context(axis: Any, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        x = [row["context"] for row in mine]
        axis.plot(x, [row["steer_us"] for row in mine], "o-", label=f"steered row, {dtype}")
        axis.plot(x, [row["read_us"] for row in mine], "--", label=f"reading, {dtype}")
    axis.set(xscale="log", yscale="log", xlabel="context", ylabel="us a layer")
    axis.legend(fontsize=8)


def _profile(axis: Any, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    rows = [row for row in rows if " - " not in row["system"]]
    left = [0.0] * len(rows)
    for part in (key for key in rows[0] if key not in ("system", "total")):
        values = [row[part] for row in rows]
        axis.barh([row["system"] for row in rows], values, left=left, label=part, height=0.6)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("ms a request")
    axis.legend(fontsize=7, ncols=3)


def _workers(axis: Any, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    values = [row["rows_per_s"] or row["whole_rows_per_s"] for row in rows]
    axis.bar([str(row["workers"]) for row in rows], values, width=0.5)
    axis.set(xlabel="workers", ylabel="rows/s")


_DRAW = {
    "throughput": _bars,
    "serve": _bars,
    "share": _line,
    "images": _line,
    "context": _context,
    "profile": _profile,
    "workers": _workers,
}
