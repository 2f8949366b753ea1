"""Output rows as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

REPORT = pa.struct(
    [
        ("mode", pa.string()),
        ("confidence", pa.float64()),
        ("alpha", pa.float64()),
        ("steered", pa.bool_()),
        ("reason", pa.string()),
    ]
)
LOGPROB = pa.struct([("token_id", pa.int32()), ("logprob", pa.float64())])


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
        return out
    row_id = out["id"]
    if columns.field("id").type == pa.string() and not isinstance(row_id, str | None):
        out["id"] = json.dumps(row_id, ensure_ascii=False)
    if out.get("logprobs"):
        out["logprobs"] = [
            [{"token_id": token, "logprob": value} for token, value in step]
            for step in out["logprobs"]
        ]
    return out


def id_type(ids: Iterable[Any]) -> pa.DataType:
    """int64 if all are whole numbers (or none), else text; anything else becomes JSON text."""
    whole = all(
        i is None or (isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**63)
        for i in ids
    )
    return pa.int64() if whole else pa.string()
