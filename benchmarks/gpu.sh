#!/usr/bin/env bash
# What is to be known of a GPU, the most important first; results are written as each step ends.
#
#   benchmarks/gpu.sh [FOLDER]      default out/gpu: gpu-*.json, .csv, .png, .md, a log for each
#                                   step, and gpu-summary.txt with its exit status and seconds
#
# ADAPTVIS: the command, default "adaptvis". MINUTES: in all, default 14; a step that would begin
# later is left out. PARTS: of "right cost more", default all. DRY=1: the same steps on a CPU, small
# and without limits of time, to see that they run.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=${1:-out/gpu}
adaptvis=${ADAPTVIS:-adaptvis}
[ "${DRY:-0}" = 1 ] && MINUTES=600
until=$((SECONDS + ${MINUTES:-14} * 60))
mkdir -p "$folder"
summary=$folder/gpu-summary.txt
touch "$summary"

wanted() { case " ${PARTS:-right cost more} " in *" $1 "*) ;; *) return 1 ;; esac; }

# step LIMIT NAME COMMAND...: at most LIMIT seconds; its output goes to gpu-NAME.log.
step() {
    local limit=$1 name=$2 started=$SECONDS status=0
    shift 2
    if ((SECONDS >= until)); then
        echo "$name: left out, no time" | tee -a "$summary"
        return
    fi
    [ "${DRY:-0}" = 1 ] && limit=36000
    ((until - SECONDS >= limit)) || limit=$((until - SECONDS))
    timeout -k 10 "$limit" "$@" >"$folder/gpu-$name.log" 2>&1 || status=$?
    echo "$name: exit $status after $((SECONDS - started)) s" | tee -a "$summary"
}

# verify LIMIT NAME OPTIONS...
verify() {
    local limit=$1 name=$2
    shift 2
    step "$limit" "$name" $adaptvis verify --out "$folder/$name" "$@"
    for kind in json md; do
        [ ! -e "$folder/$name/verify.$kind" ] || mv "$folder/$name/verify.$kind" "$folder/gpu-$name.$kind"
    done
    rmdir "$folder/$name" 2>/dev/null || true
}

# bench LIMIT NAME WHAT OPTIONS...
bench() {
    local limit=$1 name=$2 what=$3
    shift 3
    step "$limit" "$name" $adaptvis bench "$what" --out "$folder" --name "gpu-$name" "$@"
}

# Requests/s of vanilla, times 3/4, of a result of `bench throughput`; nothing without one.
three_quarters() {
    sed -n 's/.*"system": "vanilla", "requests_per_s": \([0-9.]*\).*/\1/p' \
        "$folder/gpu-$1.json" 2>/dev/null | awk '{printf "%.2f", $1 * 0.75}'
}

if [ "${DRY:-0}" = 1 ]; then
    checks=(--questions 16) steps=exact,itself,graphs,cost
    right=(CPU_ATTN:bfloat16) eager=() fp8=() runners=(v1)
    llava=(--shape '{"layers": 2, "hidden": 128, "heads": 2, "kv_heads": 2, "vision_layers": 1}')
    qwen=("${llava[@]}") wide=(--width 336)
    size=(--requests 4 --concurrency 4 --rounds 1 --max-tokens 4)
    arrivals=(--requests 4 --rounds 1 --max-tokens 4)
else
    checks=() steps=exact,itself,graphs
    right=(TRITON_ATTN:float32 TRITON_ATTN:bfloat16 FLASH_ATTN:bfloat16) runners=(v2 v1)
    eager=(TRITON_ATTN:float32 FLASH_ATTN:bfloat16) fp8=(TRITON_ATTN FLASH_ATTN)
    llava=(--shape llava-1.5-7b --dtype bfloat16)
    qwen=(--shape qwen2.5-vl-7b --dtype bfloat16) wide=(--width 1008 --height 756)
    size=(--requests 64 --concurrency 64 --rounds 5)
    arrivals=(--requests 96 --rounds 2)
fi

# Right? Small engines, side by side: nothing here is timed.
if wanted right; then
    for runner in "${runners[@]}"; do
        for backend in "${right[@]}"; do
            verify 240 "verify-$runner-${backend/:/-}" --runner "$runner" --backends "${backend%:*}" \
                --dtype "${backend#*:}" --steps "$steps" "${checks[@]}" &
        done
    done
    for backend in "${eager[@]}"; do
        verify 240 "verify-eager-${backend/:/-}" --backends "${backend%:*}" --dtype "${backend#*:}" \
            --enforce-eager --steps "$steps" "${checks[@]}" &
    done
    wait
fi

# What does it cost? One thing at a time.
if wanted cost; then
    systems=(--systems vanilla,idle,scaling,adaptive,two-request)
    bench 260 llava throughput "${llava[@]}" "${size[@]}" "${systems[@]}"
    rate=$(three_quarters llava)
    if [ -n "$rate" ]; then
        bench 200 llava-serve serve "${llava[@]}" "${arrivals[@]}" --rate "$rate" \
            --systems vanilla,adaptive
    fi
    bench 200 qwen throughput "${qwen[@]}" "${size[@]}" "${wide[@]}" "${systems[@]}"
fi

# Less usual.
if wanted more; then
    for backend in "${fp8[@]}"; do
        verify 150 "verify-fp8-$backend" --backends "$backend" --dtype bfloat16 \
            --kv-cache-dtype fp8 --steps "$steps" &
    done
    if python3 -c 'import flashinfer' 2>/dev/null; then
        verify 300 verify-flashinfer --backends FLASHINFER --steps "$steps" &
    fi
    wait
fi
cat "$summary"
