"""What one check found, and all of them as a table, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

STATES = {True: "ok", False: "FAILED", None: "-"}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    step: where, exact, itself, graphs or cost. passed: None where nothing was decided: a figure
    for information, or a check that could not be tried. figure: what was seen, with its limit.
    """

    step: str
    name: str
    passed: bool | None
    figure: str

    def line(self) -> str:
        return f"  {STATES[self.passed]:<6}  {self.step:<6}  {self.name:<44}  {self.figure}"


@dataclass
class Configuration:
    """One engine configuration and what was found with it. backend: vLLM's name of it."""

    backend: str
    dtype: str
    facts: dict[str, Any]
    checks: list[Check]

    @property
    def title(self) -> str:
        return f"{self.backend}, {self.dtype}"

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)


def as_json(
    command: str, model: str, where: dict[str, Any], found: Sequence[Configuration]
) -> dict[str, Any]:
    """For `verify.json`."""
    return {
        "command": command,
        "model": model,
        "passed": all(c.passed for c in found),
        "where": where,
        "configurations": [asdict(c) | {"passed": c.passed} for c in found],
    }


def markdown(result: dict[str, Any]) -> str:
    """The same as a block to paste into an issue. result: of `as_json`."""
    where = ", ".join(f"{k} {v}" for k, v in result["where"].items() if v is not None)
    lines = [
        f"`{result['command']}`: **{'passed' if result['passed'] else 'FAILED'}**",
        "",
        f"{result['model']}; {where}",
    ]
    for one in result["configurations"]:
        facts = ", ".join(f"{k} {v}" for k, v in one["facts"].items())
        lines += ["", f"**{one['backend']}, {one['dtype']}** ({facts})", ""]
        lines += ["| step | check | | |", "| --- | --- | --- | --- |"]
        for check in one["checks"]:
            cells = (check["step"], check["name"], STATES[check["passed"]], check["figure"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
