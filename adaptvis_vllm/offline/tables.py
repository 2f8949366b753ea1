"""Arrow tables: input rows out of them, output rows into them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from adaptvis_vllm.files.lines import BadRow, checked_row
from adaptvis_vllm.steering.fields import CONFIDENCES

CANDIDATE = pa.struct(
    [
        ("alpha", pa.float64()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("probability", pa.float64()),
        ("stop", pa.bool_()),
    ]
)
REPORT = pa.struct(
    [
        ("mode", pa.string()),
        ("confidence", pa.float64()),
        ("alpha", pa.float64()),
        ("steered", pa.bool_()),
        ("reason", pa.string()),
        ("option", pa.string()),
        ("candidates", pa.list_(CANDIDATE)),
        ("confidences", pa.struct([(kind, pa.float64()) for kind in CONFIDENCES])),
    ]
)
LOGPROB = pa.struct([("token_id", pa.int32()), ("logprob", pa.float64())])


def rows_of(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a table or record batch, their ids as JSON has them; a `BadRow` where Python has no
    such value (a year beyond 9999, text that is not UTF-8)."""
    try:
        rows: Iterable[Any] = batch.to_pylist()
    except Exception:  # of one cell; Arrow raises many kinds
        rows = (_row(batch, number) for number in range(batch.num_rows))
    for row in rows:
        yield checked_row(row) if isinstance(row, dict) else row


def _row(batch: Any, number: int) -> dict[str, Any] | BadRow:
    row: dict[str, Any] = {}
    bad = None
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[number].as_py()
        except Exception as error:
            bad = f"{name} cannot be read: {error}"
    if bad is None:
        return row
    known = checked_row(row)
    return BadRow(bad, known.get("id") if isinstance(known, dict) else known.row_id)


def schema(kind: str, id_type: pa.DataType, logprobs: bool) -> pa.Schema:
    """Columns of the output. OpenAI rows keep `response` and `error` as JSON."""
    if kind == "openai":
        return pa.schema([(n, pa.string()) for n in ("id", "custom_id", "response", "error")])
    fields: list[Any] = [
        ("id", id_type),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("adaptvis", REPORT),
    ]
    if logprobs:
        fields.append(("logprobs", pa.list_(pa.list_(LOGPROB))))
    return pa.schema([*fields, ("error", pa.string())])


def table(rows: list[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    """Output rows as an Arrow table."""
    return pa.Table.from_pylist([_plain(row, columns) for row in rows], schema=columns)


def _plain(row: dict[str, Any], columns: pa.Schema) -> dict[str, Any]:
    out = dict(row)
    if "custom_id" in columns.names:
        for name in ("response", "error"):
            if out[name] is not None:
                out[name] = json.dumps(out[name], ensure_ascii=False)
    row_id = "custom_id" if "custom_id" in columns.names else "id"
    if columns.field(row_id).type == pa.string() and not isinstance(out[row_id], str | None):
        out[row_id] = json.dumps(out[row_id], ensure_ascii=False)
    if out.get("logprobs"):
        out["logprobs"] = [
            [{"token_id": token, "logprob": value} for token, value in step]
            for step in out["logprobs"]
        ]
    return out


def id_type(ids: Iterable[Any]) -> pa.DataType:
    """int64 if all are whole numbers (or none), else text; anything else becomes JSON text."""
    whole = all(
        i is None or (isinstance(i, int) and not isinstance(i, bool) and -(2**63) <= i < 2**63)
        for i in ids
    )
    return pa.int64() if whole else pa.string()
