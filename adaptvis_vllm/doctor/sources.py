"""Whether an unpacked vLLM has all that this package uses, without importing it.

So a release can be checked on a machine that cannot run it:
    pip download --no-deps vllm==0.33.0 && unzip -q vllm-0.33.0*.whl -d unpacked
    adaptvis doctor --sources unpacked

What is used is read from this package's own sources (`needs`), what there is from vLLM's
(`tree`).
"""

from __future__ import annotations

import argparse
import ast
import builtins
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FunctionType

from adaptvis_vllm.doctor.tree import Tree
from adaptvis_vllm.plugin import HOOKS, Hook

PACKAGE = "adaptvis_vllm"
MINE = "adaptvis"  # begins the attributes that hooks put on vLLM's objects
# A string that names a symbol; entry point groups are no modules.
_TARGET = re.compile(r"vllm(\.\w+)+(?<!_plugins)(:\w+(\.\w+)*)?")


@dataclass
class Needs:
    """Each with the first place, "file:line", that needs it.

    symbols: "module" or "module:name.name". parameters: (target, names of its first positional
    parameters). names: attributes of objects whose class is not known here.
    """

    symbols: dict[str, str] = field(default_factory=dict)
    parameters: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One of our modules. imported: local name -> what it stands for, "module" or "module:name"."""

    name: str
    tree: ast.Module
    imported: dict[str, str]

    def at(self, node: ast.AST) -> str:
        return f"{self.name.replace('.', '/')}.py:{getattr(node, 'lineno', 1)}"


def missing(folder: Path) -> list[str]:
    """What vLLM's sources below folder lack, a line each.

    Exactly: symbols that are imported, attributes of those, targets of hooks with the parameters
    that our functions name, and what these read of the object whose method they stand for. By name
    alone, anywhere in vLLM: what the code behind the hooks reads of vLLM's other objects.
    ValueError if folder holds no vllm package.
    """
    if not (folder / "vllm" / "__init__.py").is_file():
        raise ValueError(f"--sources: {folder} holds no vllm package")
    others = attributes_of_others()
    tree, wanted = Tree(folder, others), needs(others)
    absent = {target: at for target, at in wanted.symbols.items() if not tree.has(target)}
    for (target, names), at in wanted.parameters.items():
        have = tree.parameters(target)
        if have is not None and have[: len(names)] != names:
            absent[f"{target}({', '.join(names)})"] = at
    anywhere = tree.names()
    for name, at in wanted.names.items():
        if name not in anywhere:
            absent[f"any attribute {name}"] = at
    return [f"{target}  used in {at}" for target, at in sorted(absent.items())]


def needs(others: Collection[str]) -> Needs:
    """Of this package as it is installed. others: attributes that are not vLLM's."""
    sources = {source.name: source for source in _sources()}
    found = Needs()
    for source in sources.values():
        _imports(source, found)
    for hook in HOOKS:
        _hook(hook, sources[f"{PACKAGE}.{hook.function.partition(':')[0]}"], found)
    own = {name for source in sources.values() for name in _defined(source.tree)}
    own.update(others)
    for name in sorted(_behind_hooks(sources)):
        for node, attribute in _reads(sources[name]):
            if attribute not in own and not attribute.startswith(MINE):
                found.names.setdefault(attribute, sources[name].at(node))
    return found


def _sources() -> Iterator[Source]:
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        parts = (PACKAGE, *file.relative_to(root).with_suffix("").parts)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    imported[alias.asname or alias.name] = f"{node.module}:{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    imported[alias.asname or whole] = whole
        yield Source(".".join(parts).removesuffix(".__init__"), tree, imported)


def _imports(source: Source, found: Needs) -> None:
    """Imported symbols, attributes of them, and those that strings name."""

    def need(target: str, node: ast.AST) -> None:
        if target.partition(":")[0].partition(".")[0] == "vllm":
            found.symbols.setdefault(target, source.at(node))

    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                need(f"{node.module}:{alias.name}", node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                need(alias.name, node)
        elif isinstance(node, ast.Attribute):
            root, path = _chain(node)
            if isinstance(root, ast.Name) and root.id in source.imported:
                if path[-1].startswith(MINE):
                    continue
                target = source.imported[root.id]
                need(f"{target}{'.' if ':' in target else ':'}{'.'.join(path)}", node)
        elif isinstance(node, ast.Constant) and _TARGET.fullmatch(str(node.value)):
            need(str(node.value), node)


def _hook(hook: Hook, source: Source, found: Needs) -> None:
    """A hook's target, the parameters of it that our function names, and what that reads of
    `self`."""
    name = hook.function.partition(":")[2]
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    (function,) = (n for n in source.tree.body if isinstance(n, kinds) and n.name == name)
    found.symbols.setdefault(hook.target, source.at(function))
    module, _, path = hook.target.partition(":")
    owner = path.rpartition(".")[0]
    names = tuple(argument.arg for argument in function.args.args[1:])  # behind `original`
    found.parameters.setdefault((hook.target, names), source.at(function))
    for node in _without_choices(function):
        read = _read(node)
        if owner and read and _is_self(read[0]) and not read[1].startswith(MINE):
            found.symbols.setdefault(f"{module}:{owner}.{read[1]}", source.at(node))


def _without_choices(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, but for expressions that depend on what an object has."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.IfExp) and "hasattr(" in ast.unparse(child.test)):
            yield from _without_choices(child)


def _behind_hooks(sources: dict[str, Source]) -> set[str]:
    """Our modules that hold functions of hooks, and those that they import."""
    found: set[str] = set()
    todo = [f"{PACKAGE}.{hook.function.partition(':')[0]}" for hook in HOOKS]
    while todo:
        name = todo.pop()
        if name in sources and name not in found:
            found.add(name)
            for target in sources[name].imported.values():
                module, _, attribute = target.partition(":")
                todo += [module, f"{module}.{attribute}"]
    return found


def _reads(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Attributes that are read or set of variables, or of what was read of them."""
    for node in ast.walk(source.tree):
        read = _read(node)
        if read is None:
            continue
        root: ast.expr = read[0]
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        if isinstance(root, ast.Name) and root.id not in source.imported:
            yield node, read[1]


def _read(node: ast.AST) -> tuple[ast.expr, str] | None:
    """(object, attribute) of `object.attribute` and of `getattr(object, "attribute")`."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 2:
        attribute = node.args[1]
        if isinstance(attribute, ast.Constant):
            return node.args[0], str(attribute.value)
    return None


def _is_self(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _chain(node: ast.Attribute) -> tuple[ast.expr, list[str]]:
    path: list[str] = []
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
        path.insert(0, at.attr)
        at = at.value
    return at, path


def _defined(tree: ast.Module) -> Iterator[str]:
    """Attributes that our own classes have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield statement.name
                elif isinstance(statement, ast.AnnAssign):
                    yield ast.unparse(statement.target)
        stored = isinstance(getattr(node, "ctx", None), ast.Store)
        if stored and isinstance(node, ast.Attribute) and _is_self(node.value):
            yield node.attr


def attributes_of_others() -> set[str]:
    """Those of Python's, torch's, numpy's, pydantic's and msgspec's objects.

    RuntimeError without these.
    """
    try:
        import msgspec
        import numpy
        import pydantic
        import torch
    except ImportError as error:
        raise RuntimeError(
            f"--sources: vLLM's attributes are told from others by {error.name}, "
            "which is not installed"
        ) from error
    kinds: list[type] = [torch.Tensor, numpy.ndarray, pydantic.BaseModel]
    kinds += [Path, argparse.Namespace, FunctionType, datetime, io.BufferedReader, io.BytesIO]
    kinds += [kind for kind in vars(builtins).values() if isinstance(kind, type)]
    instances = [json.JSONDecodeError("", "", 0), msgspec.defstruct("Struct", ())()]
    return {name for one in (*kinds, *instances) for name in dir(one)}
