"""The clients. Each gets the server's URL, runs, and raises `shell.Failed` where it must."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shell import OUT, ROOT, Failed, counted, environment, running, show

HERE = Path(__file__).parent
MODEL = "models/spatial-llava-control"
NAME = "spatial"  # of the model at the server
ENGINE = ("--dtype", "float32")
DATA = ROOT / "data/spatial"
FEW, MANY = 24, 100  # questions; many where accuracies are compared
PROXY_PORT = 8124
KEY = "sk-0123456789abcdef0123456789abcdef"  # LiteLLM refuses to start with a weak one
ADAPTIVE = {"adaptvis_alpha_low": 0.5, "adaptvis_alpha_high": 4.0, "adaptvis_threshold": 0.6}
OFF = {"adaptvis_mode": "off"}


def lm_eval_server(url: str) -> None:
    """lm-eval-harness with a local task; steered by the server's defaults, then by gen_kwargs."""
    python = environment("lm-eval", "lm_eval[api]==0.4.13", "pillow")
    model = {
        "model": NAME,
        "base_url": f"{url}/v1/chat/completions",
        "num_concurrent": 4,
        "tokenized_requests": False,
    }
    task = ["--include_path", HERE, "--tasks", "spatial", "--apply_chat_template"]
    command = [python.with_name("lm_eval"), "run", "--model", "local-chat-completions"]
    command += ["--model_args", json.dumps(model), *task, "--limit", MANY]
    found = {}
    for mode, xargs in (("scaling", None), ("off", OFF), ("adaptive", ADAPTIVE)):
        more = ["--gen_kwargs", json.dumps({"vllm_xargs": xargs})] if xargs else []
        with counted(url, {mode: MANY}):
            found[mode] = _accuracy(show([*command, *more], lines=r"^\|"))
    _check_gain(found["off"], found["scaling"])


def lm_eval_engine(url: str) -> None:
    """lm-eval-harness' own vLLM engine; what was steered is counted in its process."""
    python = environment("vllm-vlm", "lm_eval[api]==0.4.13", project=True)
    found = {}
    for steering in ({"alpha": 4}, {"mode": "off"}):
        command = [python, HERE / "vllm_vlm.py", MODEL, json.dumps(steering), MANY]
        output = show(command, lines=r"^(\||steered)")
        mode = steering.get("mode", "scaling")
        if f"'mode': '{mode}'" not in output or f"'count': {MANY}" not in output:
            raise Failed(f"{MANY} requests with mode {mode} were not counted")
        found[mode] = _accuracy(output)
    _check_gain(found["off"], found["scaling"])


def openai_batch(url: str) -> None:
    """A batch file of the official client's types, read by `adaptvis batch`; its answers are
    those that the client gets from the server."""
    python = environment("openai", "openai==3.57.0", "pillow")
    requests, answers = OUT / "requests.jsonl", OUT / "answers.jsonl"
    write = [python, HERE / "openai_batch.py"]
    show([*write, "write", requests, _questions(FEW)])
    adaptvis = [
        Path(sys.executable).with_name("adaptvis"),
        "batch",
        requests,
        "-o",
        answers,
        "--overwrite",
    ]
    adaptvis += ["--workers", 0, "--model", MODEL, "--served-model-name", NAME, *ENGINE]
    show(adaptvis, lines="^(rows|answered|error|low) ")
    with counted(url, {"adaptive": FEW}):
        show([*write, "compare", requests, answers, f"{url}/v1"])


def vllm_bench(url: str) -> None:
    """`vllm bench serve`, whose requests say how they are steered."""
    python = environment("vllm-vlm", "lm_eval[api]==0.4.13", project=True)
    asked = OUT / "bench.jsonl"
    with asked.open("w") as out:
        for row in _rows(FEW):
            out.write(json.dumps({"prompt": row["question"], "image_files": [_data(row)]}) + "\n")
    command = [python, "-P", "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
    command += ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"]
    command += ["--model", NAME, "--tokenizer", MODEL, "--dataset-name", "custom_image"]
    command += ["--dataset-path", asked, "--num-prompts", FEW, "--custom-output-len", 4]
    with counted(url, {"adaptive": FEW}):
        show(
            [*command, "--extra-body", json.dumps({"vllm_xargs": ADAPTIVE})],
            lines=r"requests|throughput|Mean|tokens:",
        )


def litellm(url: str) -> None:
    """LiteLLM's proxy in front: `vllm_xargs` pass, the report comes back, errors are 400."""
    python = environment("litellm", "litellm[proxy]==1.108.7")
    config = OUT / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {NAME}\n    litellm_params:\n"
        f"      model: hosted_vllm/{NAME}\n      api_base: {url}/v1\n      api_key: none\n"
    )
    proxy = f"http://localhost:{PROXY_PORT}"
    command = [python.with_name("litellm"), "--config", config, "--port", PROXY_PORT]
    environ = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    ask = [python, HERE / "ask.py"]
    with running(command, f"{proxy}/health/liveliness", "litellm.log", **environ):
        for where, report_in_streams in (("v1", False), ("vllm", True)):
            with counted(url, {"adaptive": 2}):
                output = show([*ask, f"{proxy}/{where}", KEY, _questions(1)])
            reports = output.count("'mode': 'adaptive'")
            if reports != 1 + report_in_streams:
                raise Failed(f"{reports} reports came back through {where}")
            if where == "v1" and "400: " not in output:
                raise Failed("a wrong parameter is no HTTP 400")


def vlmevalkit(url: str) -> None:
    """VLMEvalKit, as NVIDIA packages it; its own code for an OpenAI endpoint, own questions."""
    python = environment("vlmevalkit", "nvidia-vlmeval==26.3", project=True)
    data, config, out = OUT / "LMUData", OUT / "vlmeval.json", OUT / "vlmeval"
    data.mkdir(exist_ok=True)
    with (data / "spatial.tsv").open("w") as tsv:
        tsv.write("index\timage\tquestion\tanswer\n")
        for number, row in enumerate(_rows(FEW)):
            tsv.write(f"{number}\t{_base64(row)}\t{row['question']}\t{row['answer']}\n")
    model = {"class": "GPT4V", "model": NAME, "key": "none", "img_size": -1, "max_tokens": 4}
    model |= {"api_base": f"{url}/v1/chat/completions", "vllm_xargs": ADAPTIVE}
    questions = {"class": "CustomVQADataset", "dataset": "spatial"}
    config.write_text(json.dumps({"model": {NAME: model}, "data": {"spatial": questions}}))
    command = [python, "-P", "-m", "vlmeval.run", "--config", config, "--mode", "infer"]
    with counted(url, {"adaptive": FEW}):
        show([*command, "--work-dir", out], lines="kwargs|API Base", LMUData=str(data))
    score = "import sys, pandas; t = pandas.read_excel(sys.argv[1]); print(len(t), 'answers,', "
    score += "(t.prediction.str.strip().str.lower() == t.answer).sum(), 'right')"
    newest = max(out.rglob("*.xlsx"), key=lambda path: path.stat().st_mtime)
    show([python, "-P", "-c", score, newest])


def _rows(count: int) -> Iterator[dict[str, Any]]:
    with (DATA / "distractors.jsonl").open() as lines:
        for _, line in zip(range(count), lines, strict=False):
            yield json.loads(line)


def _questions(count: int) -> Path:
    """JSONL of `question` and `image`, a data URI."""
    path = OUT / f"questions-{count}.jsonl"
    with path.open("w") as out:
        for row in _rows(count):
            out.write(json.dumps({"question": row["question"], "image": _data(row)}) + "\n")
    return path


def _base64(row: dict[str, Any]) -> str:
    return base64.b64encode((DATA / row["image"]).read_bytes()).decode()


def _data(row: dict[str, Any]) -> str:
    return f"data:image/png;base64,{_base64(row)}"


def _accuracy(output: str) -> float:
    (line,) = [line for line in output.splitlines() if line.startswith("|spatial")]
    return float(line.split("|")[7])


def _check_gain(plain: float, steered: float) -> None:
    print(f"accuracy: {plain} unsteered, {steered} with alpha 4")
    if steered <= plain:
        raise Failed("steering gained nothing on a model that needs it")


ALL: dict[str, Callable[[str], None]] = {
    "lm-eval": lm_eval_server,
    "vllm-vlm": lm_eval_engine,
    "openai-batch": openai_batch,
    "vllm-bench": vllm_bench,
    "litellm": litellm,
    "vlmevalkit": vlmevalkit,
}
