"""Results as files: JSON, CSV and PNG of each run, and all of a folder as one Markdown page."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptvis_vllm.bench import plots
from adaptvis_vllm.bench.machine import facts

# Column of a figure -> (heading, format).
COLUMNS = {
    "system": ("system", "{}"),
    "x": ("", "{}"),
    "requests_per_s": ("requests/s", "{:.3f}"),
    "spread": ("min to max", "{}"),
    "ratio": ("of vanilla", "{:.3f}"),
    "ratio_spread": ("min to max", "{}"),
    "cpu_s": ("processor s/request", "{:.3f}"),
    "cpu_ratio": ("vanilla's / its", "{:.3f}"),
    "tokens_per_s": ("tokens/s", "{:.1f}"),
    "ttft_p50_ms": ("TTFT p50 ms", "{:.1f}"),
    "ttft_p99_ms": ("p99", "{:.1f}"),
    "itl_p50_ms": ("ITL p50 ms", "{:.1f}"),
    "itl_p99_ms": ("p99", "{:.1f}"),
    "passes": ("passes/request", "{:.2f}"),
    "scheduled": ("tokens scheduled/request", "{:.2f}"),
    "blocks": ("KV blocks", "{}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "dtype": ("dtype", "{}"),
    "context": ("context", "{:,}"),
    "mib": ("MiB of K and V", "{:.2f}"),
    "steer_us": ("steered row, us a layer", "{:.0f}"),
    "read_us": ("reading, us", "{:.0f}"),
    "times": ("times reading", "{:.2f}"),
    "workers": ("workers", "{}"),
    "rows_per_s": ("rows/s, 20% to 80% of the job", "{:.2f}"),
    "whole_rows_per_s": ("rows/s, starts included", "{:.2f}"),
}
# One command for an A100 or H100 with 80 GB.
GPU_RECIPE = (
    "adaptvis bench all --model llava-hf/llava-1.5-7b-hf --dtypes bfloat16 --requests 64 "
    "--concurrency 64 --rate 8 --out out/bench-gpu"
)


def save(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write NAME.json, NAME.csv and NAME.png.

    result: kind, title, settings, rows (of figures), and what else the kind has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = {**result, "machine": facts()}
    (folder / f"{name}.json").write_text(_lines(result), encoding="utf-8")
    rows = result["rows"]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fields)
        writer.writeheader()
        writer.writerows(rows)
    plots.draw(result, folder / f"{name}.png")


def _lines(result: dict[str, Any]) -> str:
    """JSON with one line for each of its top-level values."""
    pairs = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in result.items())
    return "{\n" + ",\n".join(pairs) + "\n}\n"


def table(result: dict[str, Any]) -> str:
    """The result's rows as a Markdown table, which also reads well on a terminal."""
    rows = [_display(row) for row in result["rows"]]
    if result["kind"] == "profile":
        columns = {key: (key, "{}" if key == "system" else "{:.2f}") for key in rows[0]}
    else:
        columns = COLUMNS | {"x": (result.get("x", ""), "{}")}
    used = [k for k in columns if any(row.get(k) is not None for row in rows)]
    lines = [[columns[k][0] for k in used]]
    for row in rows:
        lines.append(
            [columns[k][1].format(row[k]) if row.get(k) is not None else "-" for k in used]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def _display(row: dict[str, Any]) -> dict[str, Any]:
    out = dict(row)
    if "requests_per_s" in row:
        out["spread"] = f"{row['requests_per_s_min']:.3f} to {row['requests_per_s_max']:.3f}"
    if "ratio" in row:
        out["ratio_spread"] = f"{row['ratio_min']:.3f} to {row['ratio_max']:.3f}"
    if "steer_us" in row:
        out["mib"] = row["bytes"] / 2**20
        out["times"] = row["steer_us"] / row["read_us"]
    return out


def page(folder: Path, target: Path) -> None:
    """Write all results of a folder as one Markdown page; ValueError if there is none."""
    files = sorted(folder.glob("*.json"))
    found = [(f, json.loads(f.read_text(encoding="utf-8"))) for f in files]
    found = [(f, r) for f, r in found if isinstance(r, dict) and "kind" in r]
    if not found:
        raise ValueError(f"{folder} holds no results of adaptvis bench")
    order = ("throughput", "serve", "share", "images", "context", "profile", "workers")
    found.sort(key=lambda item: (order.index(item[1]["kind"]), item[0].name))
    parts = [
        "# Results of `adaptvis bench`",
        "",
        "Written by `adaptvis bench report`; do not edit. Rates are medians over the rounds. A",
        "ratio is taken within each round, whose turns lie next to each other; its median and",
        "its smallest and largest are given. TTFT: time to first token. ITL: time between tokens.",
        "Passes of a request are the batch's forward passes divided by its requests.",
    ]
    for machine in _unique([r["machine"] for _, r in found]):
        parts += ["", ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None)]
    for file, result in found:
        parts += ["", f"## {result['title']}", "", f"`{result['command']}`", ""]
        parts += [", ".join(f"{k} {v}" for k, v in result["settings"].items()), ""]
        parts += [_tight(table(result))]
        parts += ["", *result.get("notes", ())] if result.get("notes") else []
        if file.with_suffix(".png").exists():
            picture = Path(_relative(file.with_suffix(".png"), target.parent))
            parts += ["", f"![{result['title']}]({picture.as_posix()})"]
    if not any(r["machine"].get("gpu") for _, r in found):
        parts += ["", "## On a GPU: not yet run", "", f"`{GPU_RECIPE}`"]
    target.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _tight(text: str) -> str:
    """A table without the padding."""
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
    rows[1] = ["---"] * len(rows[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _unique(values: Sequence[Any]) -> list[Any]:
    out: list[Any] = []
    for value in values:
        if value not in out:
            out.append(value)
    return out


def _relative(path: Path, start: Path) -> str:
    return os.path.relpath(path.resolve(), start.resolve())
