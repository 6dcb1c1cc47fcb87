#!/usr/bin/env bash
# The GPU tests and all benchmarks on the machine's first GPU; results go to benchmarks/results/.
#
#     benchmarks/gpu.sh [PART...]       parts: tests kernels search-1b search-7b family-1b family-7b; all by default
#
# Needs a python with torch (CUDA), triton, transformers, pytest, hypothesis, typer, rich, safetensors and peft: PYTHON
# names it, python3 otherwise. Nothing is installed or downloaded. A part that fails is named at the end, and the others
# run all the same. Reckoned, not measured yet: at most 7 minutes a part on one H100 and 20 for all. COMPILE=1 captures
# our decode steps (docs/compile.md); RESULTS then names a folder of its own for them.
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
SIZES=1x1024,1x8192,1x32768,8x1024,8x8192,8x32768

tests() {
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels \
        tests/decoding/strategies/test_kernels_in_strategies.py \
        tests/decoding/stream/test_cuda_graph_steps_cuda.py
}
kernels() {
    local dtype status=0
    for dtype in bfloat16 float32; do
        "$PYTHON" benchmarks/kernel_forms.py --dtype $dtype --output "$RESULTS/kernels_$dtype.csv" || status=1
    done
    return $status
}
search-1b() {
    "$PYTHON" benchmarks/contrastive_search.py "${GPU[@]}" "${SMALL[@]}" --sizes $SIZES \
        --output "$RESULTS/contrastive_search_1b.csv"
}
search-7b() {  # 8 x 32k: 14 GB of weights and 39 GB of cache, so one method after the other, prompts in pieces
    "$PYTHON" benchmarks/contrastive_search.py "${GPU[@]}" "${LARGE[@]}" --head-dim 128 --apart --prefill-chunk 4096 \
        --sizes $SIZES --output "$RESULTS/contrastive_search_7b.csv"
}
family-1b() {
    "$PYTHON" benchmarks/contrast.py "${GPU[@]}" "${SMALL[@]}" --sizes 1x1024,1x8192 --output "$RESULTS/contrast_1b.csv"
}
family-7b() {
    "$PYTHON" benchmarks/contrast.py "${GPU[@]}" "${LARGE[@]}" --apart --sizes 1x1024,1x8192 \
        --output "$RESULTS/contrast_7b.csv"
}

PARTS=(tests kernels search-1b search-7b family-1b family-7b)
run_parts "$@"
