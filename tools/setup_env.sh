#!/usr/bin/env bash
# Makes .venv in the checkout. Silent and instant when there is nothing to do.
# EXTRA: cpu or cuda; left empty, what .venv has, else cpu. PYTHON: the interpreter to use.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
STAMP=.venv/setup.stamp LOG=.venv/setup.log

say() { echo "setup: $*"; }
die() { say "$*" >&2; exit 1; }
stamped() { sed -n "s/^$1 //p" "$STAMP" 2>/dev/null || true; }

extra=${EXTRA:-$(stamped extra)}
extra=${extra:-cpu}
case $extra in cpu | cuda) ;; *) die "EXTRA must be cpu or cuda, not '$extra'" ;; esac
stamp() {
    echo "extra $extra"
    echo "checkout $PWD"
    echo "inputs $(cat pyproject.toml tools/setup_env.sh | cksum)"
}
[ "$(stamp)" = "$(cat "$STAMP" 2>/dev/null)" ] && exit 0

# Python
find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        command -v "$name" >/dev/null || continue
        "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || continue
        command -v "$name"
        return
    done
}
python=$(find_python)
[ -n "$python" ] || die "vLLM needs Python 3.11 to 3.14, which ${PYTHON:-python3} here is not;" \
    "install one, or name it: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python has no venv module; install" \
    "it (Debian, Ubuntu: apt install python$("$python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')-venv)"

# A .venv that another checkout or another EXTRA made, or that pip left half filled, goes.
if [ -e .venv ]; then
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        old="is unfinished"
    elif [ -e "$STAMP" ] && [ "$(stamped checkout)" != "$PWD" ]; then
        old="was made for another folder"
    elif [ -e "$STAMP" ] && [ "$(stamped extra)" != "$extra" ]; then
        old="was made for EXTRA=$(stamped extra)"
    elif grep -q '^Installing collected' "$LOG" 2>/dev/null &&
        ! grep -q '^Successfully installed' "$LOG"; then
        old="is unfinished"
    fi
    [ -z "${old:-}" ] || { say ".venv $old: making it anew"; rm -rf .venv; }
fi
[ -e .venv ] || { say "making .venv with $("$python" --version)"; "$python" -m venv .venv; }
rm -f "$STAMP"

# Packages
install() {
    .venv/bin/python -m pip install --no-input --progress-bar off -e ".[$extra,dev]" "$@" \
        >"$LOG" 2>&1 &
    local pip=$! started=$SECONDS shown=0
    trap 'kill "$pip" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pip" 2>/dev/null; do
        sleep 0.5
        if ((SECONDS - started >= shown + 20)); then
            shown=$((SECONDS - started))
            say "  $shown s: $(grep -oE '^(Collecting|Installing collected packages|Building)[^;,:<>=(~!]*' \
                "$LOG" | tail -1)"
        fi
    done
    trap - INT TERM
    wait "$pip"
}
say "installing vLLM ($extra) and the development tools; some minutes and 4 GB at first"
started=$SECONDS
if ! install; then
    if [ "$extra" = cpu ] && grep -q 'No matching distribution found for torch==' "$LOG"; then
        .venv/bin/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=20)' \
            "$TORCH_CPU_INDEX/torch/" 2>/dev/null || die "pip finds no CPU build of PyTorch, and" \
            "$TORCH_CPU_INDEX, which has it, cannot be reached"
        say "PyTorch's CPU build comes from $TORCH_CPU_INDEX"
        install --extra-index-url "$TORCH_CPU_INDEX" || failed=1
    else
        failed=1
    fi
fi
[ -z "${failed:-}" ] || die "pip failed; the whole output is in $LOG; its last error:" \
    "$(grep -o 'ERROR: .*' "$LOG" | tail -1 | cut -c1-300)"

# CUDA builds of these come along with a CPU build of PyTorch and break imports; they are optional.
if [ "$extra" = cpu ]; then
    for name in torchaudio torchcodec; do
        .venv/bin/python -c "
import importlib.util, sys
if importlib.util.find_spec('$name'):
    try:
        import $name
    except Exception:
        sys.exit(1)" 2>/dev/null || .venv/bin/python -m pip uninstall -q -y "$name"
    done
    say "$(.venv/bin/python -W ignore -m adaptvis_vllm._torchvision)"
fi
stamp >"$STAMP"
say "done in $((SECONDS - started)) s"
