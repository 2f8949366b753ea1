"""vLLM's sources as a tree of names: which module, class or function has which."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

# Statements that may hold a definition; of a class body and of methods.
_DEFINED = re.compile(
    r"(?:def|class) (\w+)|^    (\w+)\s*[:=]|\bself\.(\w+)\b\s*(?::[^=\n]+)?=[^=]", re.MULTILINE
)


class Tree:
    """folder: holds the package `vllm`. inherited: what classes have of bases outside of it.

    Targets are "module" or "module:name.name".
    """

    def __init__(self, folder: Path, inherited: Collection[str] = ()) -> None:
        self.folder = folder
        self.inherited = inherited
        self.module = cache(self._module)

    def names(self) -> set[str]:
        """Of all functions, classes and attributes."""
        found: set[str] = set()
        for file in (self.folder / "vllm").rglob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            found.update(name for groups in _DEFINED.findall(text) for name in groups if name)
        return found

    def has(self, target: str) -> bool:
        """Whether it exists. What is no module and no class has every attribute."""
        module, _, path = target.partition(":")
        if self.module(module) is None:
            return False
        return self._walk(module, path.split(".") if path else []) is not None

    def parameters(self, target: str) -> tuple[str, ...] | None:
        """Positional ones of a function or method, in order; None if it is something else."""
        module, _, path = target.partition(":")
        found = self._walk(module, path.split("."))
        if found is None or not isinstance(found[1], ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        arguments = found[1].args
        return tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args))

    def _module(self, name: str) -> ast.Module | None:
        base = self.folder.joinpath(*name.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
        return None

    def _walk(self, module: str, path: list[str]) -> tuple[str, ast.AST] | None:
        """(module, node) of what a path of names leads to, from a module on."""
        tree = self.module(module)
        if tree is None:
            return None
        at: tuple[str, ast.AST] = (module, tree)
        for name in path:
            found: tuple[str, ast.AST] | None = at
            if isinstance(at[1], ast.Module):
                found = self._global(at[0], name)
            elif isinstance(at[1], ast.ClassDef):
                found = self._member(at[0], at[1], name)
            if found is None:
                return None
            at = found
        return at

    def _global(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """A module's name, through imports."""
        tree = self.module(module)
        for node in _flat(tree.body) if tree else ():
            if isinstance(node, ast.ImportFrom):
                source = self._absolute(module, node)
                for alias in node.names:
                    if alias.name == "*" and source.startswith("vllm"):
                        found = self._global(source, name)
                        if found is not None:
                            return found
                    if name == (alias.asname or alias.name):
                        if not source.startswith("vllm"):
                            return module, node
                        return self._global(source, alias.name)
            elif name in _names(node):
                return module, node
        inner = f"{module}.{name}"
        submodule = self.module(inner)
        return (inner, submodule) if submodule else None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        if (self.folder.joinpath(*parts) / "__init__.py").is_file():
            parts.append("")
        parts = parts[: -node.level]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def _member(self, module: str, node: ast.ClassDef, name: str) -> tuple[str, ast.AST] | None:
        """A class's name, of its bases and instances too."""
        for statement in _flat(node.body):
            if name in _names(statement):
                return module, statement
        for inner in ast.walk(node):
            if (
                isinstance(inner, ast.Attribute)
                and isinstance(inner.ctx, ast.Store)
                and inner.attr == name
                and ast.unparse(inner.value) in ("self", "cls")
            ):
                return module, inner
        for base in node.bases:
            path = ast.unparse(base).partition("[")[0].split(".")
            found = self._walk(module, path)
            if found is not None and isinstance(found[1], ast.ClassDef):
                inherited = self._member(found[0], found[1], name)
                if inherited is not None:
                    return inherited
            elif name in self.inherited:
                return module, base
        return None


def _flat(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements, those of conditionals included."""
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
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
