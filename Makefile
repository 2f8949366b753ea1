# EXTRA: cpu or cuda, for setup. PYTHON: the interpreter that .venv is made with.
export EXTRA PYTHON

PY := .venv/bin/python
# PYTHONSAFEPATH: the checkout itself is not importable, so `kernels` stays another project's.
ENV := PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0 \
	TORCHDYNAMO_DISABLE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=2

.PHONY: help setup demo test lint docs clean
help:
	@echo "make demo    ask a small model about pictures, with and without steering"
	@echo "make test    all checks: lint, types, tests"
	@echo "make setup   make or update .venv (the other targets do it); EXTRA=cuda for a GPU"
	@echo "make lint    lint and types only"
	@echo "make docs    the documentation as a site: site/index.html"
	@echo "make clean   remove caches, the site and the demo's files; .venv stays"

setup:
	@bash tools/setup_env.sh

demo: setup
	@$(ENV) $(PY) demo/run.py

lint: setup
	@$(ENV) $(PY) -m ruff check .
	@$(ENV) $(PY) -m ruff format --check .
	@$(ENV) $(PY) -m mypy

# A dead link ends it. The variable silences an advertisement.
docs: setup
	@$(ENV) NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo site/index.html

# Files of tests side by side, in order: each has its engines to itself.
test: lint
	@$(ENV) .venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	@rm -rf out/demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
