#!/usr/bin/env bash
# All benchmarks on this machine's CPU, one after the other; results go to benchmarks/results/.
#
#     benchmarks/cpu.sh [PART...]       parts: startup contrastive_search contrast long_context isotropy truthfulqa_mc real_models linear_products drafts draft_costs draft_lengths; all by default
#
# Needs a python with this library, peft and lm-eval: PYTHON names it, python3 otherwise (`make bench` brings one). PEER
# names one with transformers 4.55.4, whose contrastive search is then measured too. RESULTS names another folder. Nothing
# else should run meanwhile. A part that fails is named at the end, and the others run all the same.
source "$(dirname "$0")/parts.sh"

bench() {  # NAME OPTION...
    "$PYTHON" "benchmarks/$1.py" "${@:2}" --output "$RESULTS/$1.csv"
}
startup() { bench startup; }
contrastive_search() { bench contrastive_search ${PEER:+--peer-python "$PEER"}; }
contrast() { bench contrast; }
long_context() { bench long_context; }
isotropy() { bench isotropy; }
truthfulqa_mc() {
    local status=0
    bench truthfulqa_mc || status=1
    bench truthfulqa_mc --questions 4 --prompt-tokens 600 || status=1
    return $status
}
real_models() { bench real_models; }
linear_products() { bench linear_products; }
drafts() { bench drafts; }
draft_costs() { bench draft_costs; }
draft_lengths() { bench draft_lengths --costs "$RESULTS/draft_costs.csv"; }

PARTS=(startup contrastive_search contrast long_context isotropy truthfulqa_mc real_models linear_products drafts draft_costs draft_lengths)
run_parts "$@"
