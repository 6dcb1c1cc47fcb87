#!/usr/bin/env bash
# The GPU tests and all benchmarks on the machine's first GPU; results go to benchmarks/results/.
#
#     benchmarks/gpu.sh [PART...]
#
# Parts, the most telling first, which run where none are named: tests kernels search lol drafts. Each is ended after 4
# minutes (LIMIT, in seconds) and all together after 14 at most, a bound that no GPU has been measured against yet. A part
# that has ended well is not run again: remove RESULTS/gpu-parts/PART. One that was ended early keeps the sizes that it
# has measured. By name only, without a bound: search-32k search-7b family-1b family-7b.
#
# Needs a python with torch (CUDA), triton, transformers, pytest, hypothesis, typer, rich, safetensors and peft: PYTHON
# names it, python3 otherwise. Nothing is installed or downloaded. A part that fails is named at the end, and the others
# run all the same. COMPILE=1 captures our decode steps (docs/compile.md); RESULTS then names a folder of its own for them.
source "$(dirname "$0")/parts.sh"

"$PYTHON" - <<'CHECK' || exit 2
import sys
try:
    import torch, triton, transformers
except ImportError as absent:
    sys.exit(f"gpu.sh: {sys.executable}: {absent}; PYTHON=... names another interpreter")
if not torch.cuda.is_available():
    sys.exit("gpu.sh needs a CUDA GPU and finds none")
versions = (f"{package.__name__} {package.__version__}" for package in (torch, triton, transformers))
print(torch.cuda.get_device_name(), *versions, sep=", ")
CHECK

# About 1B parameters: 20 layers x 2048; about 7B: 36 x 4096; both with 8 key heads, in bfloat16.
SMALL=(--layers 20 --width 2048)
LARGE=(--layers 36 --width 4096)
GPU=(--device cuda --dtype bfloat16 --repeats 3 ${COMPILE:+--compile})
LONG=1x32768,8x1024,8x8192,8x32768
LIMIT=${LIMIT:-240}

# once NAME COMMAND... runs a command within the limit, unless it has ended well before.
once() {
    local done_file="$RESULTS/gpu-parts/$1"
    [[ ! -e $done_file ]] || { echo "done before: $done_file"; return 0; }
    timeout --signal=INT --kill-after=20 "$LIMIT" "${@:2}" || return 1
    mkdir -p "$RESULTS/gpu-parts" && date -u +%FT%TZ > "$done_file"
}

tests() {
    once tests "$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels \
        tests/decoding/strategies/test_kernels_in_strategies.py \
        tests/decoding/stream/test_cuda_graph_steps_cuda.py
}
kernels() {
    local dtype status=0
    for dtype in bfloat16 float32; do
        once kernels_$dtype "$PYTHON" benchmarks/kernel_forms.py --dtype $dtype --output "$RESULTS/kernels_$dtype.csv" || status=1
    done
    return $status
}
search() {
    once search "$PYTHON" benchmarks/contrastive_search.py "${GPU[@]}" "${SMALL[@]}" --sizes 1x1024,1x8192 \
        --output "$RESULTS/contrastive_search_1b.csv"
}
lol() {
    once lol "$PYTHON" benchmarks/contrast.py "${GPU[@]}" "${SMALL[@]}" --sizes 1x1024 --output "$RESULTS/contrast_1b.csv"
}
drafts() {
    once drafts "$PYTHON" benchmarks/drafts.py --device cuda "${SMALL[@]}" --batches 1,4 --threads 1 --repeats 3 \
        --settings "contrastive search, given;greedy, given;contrastive search, embedded;LOL, embedded" \
        --output "$RESULTS/drafts_gpu.csv"
}
search-32k() {
    "$PYTHON" benchmarks/contrastive_search.py "${GPU[@]}" "${SMALL[@]}" --sizes $LONG \
        --output "$RESULTS/contrastive_search_32k.csv"
}
search-7b() {  # 8 x 32k: 14 GB of weights and 39 GB of cache, so one method after the other, prompts in pieces
    "$PYTHON" benchmarks/contrastive_search.py "${GPU[@]}" "${LARGE[@]}" --head-dim 128 --apart --prefill-chunk 4096 \
        --sizes 1x1024,1x8192,$LONG --output "$RESULTS/contrastive_search_7b.csv"
}
family-1b() {
    "$PYTHON" benchmarks/contrast.py "${GPU[@]}" "${SMALL[@]}" --sizes 1x1024,1x8192 --output "$RESULTS/contrast_1b.csv"
}
family-7b() {
    "$PYTHON" benchmarks/contrast.py "${GPU[@]}" "${LARGE[@]}" --apart --sizes 1x1024,1x8192 \
        --output "$RESULTS/contrast_7b.csv"
}

PARTS=(tests kernels search lol drafts)
BY_NAME=(search-32k search-7b family-1b family-7b)
run_parts "$@"
