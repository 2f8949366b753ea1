"""`adaptvis doctor --sources`: what this package uses of vLLM, looked for in vLLM's sources."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from adaptvis_vllm import cli
from adaptvis_vllm.doctor.sources import attributes_of_others, missing, needs
from adaptvis_vllm.engine.compat import CHECKED_VLLM, refuse_version
from adaptvis_vllm.plugin import HOOKS

ROOT = Path(__file__).parents[2]
INSTALLED = Path(str(find_spec("vllm").origin)).parent  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def found() -> object:
    return needs(attributes_of_others())


def test_the_installed_vllm_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--sources", str(INSTALLED.parent)]) == 0
    assert capsys.readouterr().out == "every symbol is there\n"


def test_a_symbol_missing_from_sources_is_named(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    (tmp_path / "vllm" / "outputs.py").write_text("class RequestOutput: ...")
    found = {line.partition("  used in ")[0] for line in missing(tmp_path)}
    assert "vllm.outputs:RequestOutput" not in found
    assert found >= {hook.target for hook in HOOKS}


def test_every_import_of_vllm_is_looked_for(found: object) -> None:
    """However it is written: found here by text, there by Python's grammar."""
    symbols = {target.partition(".")[2] for target in found.symbols}
    text = "\n".join(file.read_text() for file in (ROOT / "adaptvis_vllm").rglob("*.py"))
    lines = re.findall(r"^ *from (vllm[\w.]*) import (\(.*?\)|[^\n]*)", text, re.M | re.S)
    assert len(lines) > 50
    for module, names in lines:
        for name in re.findall(r"(\w+)(?: as \w+)?[,\n)]", re.sub(r"#.*", "", names) + "\n"):
            assert f"{module}:{name}".partition(".")[2] in symbols, (module, name)
    assert {hook.target.partition(".")[2] for hook in HOOKS} <= symbols


# Of a file of vLLM: what is renamed in it, and the line that says so.
CHANGES = [
    # an import at the top, one inside a function, a module's variable
    ("config/compilation.py", "CUDAGraphMode", "vllm.config:CUDAGraphMode "),
    ("transformers_utils/processor.py", "get_video_processor_cls_name", "processor_cls_name "),
    (
        "model_executor/layers/rotary_embedding/__init__.py",
        "_ROPE_DICT",
        ":rotary_embedding._ROPE_DICT ",
    ),
    # members of an imported class
    ("engine/arg_utils.py", "from_cli_args", ":EngineArgs.from_cli_args "),
    ("v1/attention/backend.py", "DECODER", ":AttentionType.DECODER "),
    # a hooked function, a parameter of one, what one reads of its object
    ("v1/worker/gpu_model_runner.py", "_prepare_inputs", ":GPUModelRunner._prepare_inputs "),
    ("v1/worker/gpu/model_runner.py", "dummy_run", ":GPUModelRunner.execute_model(self, sched"),
    ("v1/worker/gpu_model_runner.py", "discard_request_mask", "Runner.discard_request_mask "),
    ("v1/core/sched/scheduler.py", "requests", ":Scheduler.requests "),
    # an attribute of an object that a hook is handed, wherever it is
    ("**/*.py", "scheduled_spec_decode_tokens", "any attribute scheduled_spec_decode_tokens "),
]


def test_what_is_renamed_is_missing(tmp_path: Path) -> None:
    """In a copy of links to vLLM's files, those that are changed replaced."""
    for file in INSTALLED.rglob("*.py"):
        link = tmp_path / "vllm" / file.relative_to(INSTALLED)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    for pattern, name, _ in CHANGES:
        changed = 0
        for file in (tmp_path / "vllm").glob(pattern):
            text, count = re.subn(rf"\b{name}\b", f"{name}_renamed", file.read_text())
            if count:
                file.unlink()
                file.write_text(text)
                changed += 1
        assert changed, name
    lines = missing(tmp_path)
    for _, _, line in CHANGES:
        said = next((text for text in lines if line in text), "")
        assert re.search(r" used in adaptvis_vllm/[\w/]+\.py:\d+$", said), (line, lines)


def test_a_folder_without_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--sources", str(tmp_path)]) == 1
    assert "holds no vllm package" in capsys.readouterr().err


def test_what_is_installed_for_a_gpu_is_served() -> None:
    """The extra `cuda` admits what the plugin accepts, and no release that may come."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["cuda"]
    name, _, versions = requirement.partition("vllm")
    assert name == ""
    admitted = SpecifierSet(versions)
    numbers = [f"0.{minor}.{patch}" for minor in range(30, 37) for patch in range(4)]
    for version in (*numbers, *(f"{n}.post1" for n in numbers), "1.0.0"):
        assert admitted.contains(version) == (refuse_version(version) is None), version
    for version in CHECKED_VLLM:
        assert admitted.contains(f"{version}+cu129")
