"""Whether the hooks resolve in an unpacked vLLM, without importing it.

So a release can be checked on a machine that cannot run it:
    pip download --no-deps vllm==0.33.0 && unzip -q vllm-0.33.0*.whl -d unpacked
    adaptvis doctor --sources unpacked
"""

from __future__ import annotations

import ast
from pathlib import Path

from adaptvis_vllm.plugin import HOOKS, NEEDS


def missing(folder: Path) -> list[str]:
    """Targets of hooks, and other symbols used, that vLLM's sources below folder lack.

    ValueError if folder holds no vllm package.
    """
    if not (folder / "vllm" / "__init__.py").is_file():
        raise ValueError(f"--sources: {folder} holds no vllm package")
    targets = [hook.target for hook in HOOKS] + list(NEEDS)
    return [target for target in targets if not _defined(folder, target)]


def _defined(folder: Path, target: str) -> bool:
    module, _, path = target.partition(":")
    base = folder.joinpath(*module.split("."))
    file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    if not file.is_file():
        return False
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    for name in path.split("."):
        found = next((node for node in _flat(body) if name in _names(node)), None)
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


def _flat(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements, those of top-level conditionals included."""
    out = []
    for node in body:
        out.append(node)
        if isinstance(node, ast.If | ast.Try):
            out += _flat([*node.body, *node.orelse])
    return out


def _names(node: ast.stmt) -> set[str]:
    """What a statement defines or imports."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()
