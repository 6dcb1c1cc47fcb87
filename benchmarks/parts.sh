# For scripts of several benchmarks, sourced first: from here on they run in the repository's root, with the interpreter PYTHON
# and results into the folder RESULTS.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-benchmarks/results}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$RESULTS"

# run_parts runs the functions named in PARTS, or those asked for (those in BY_NAME too), one after the other. A part that fails is named at the end,
# and the others run all the same.
run_parts() {
    local part began failed=()
    for part in "$@"; do
        [[ " ${PARTS[*]}${BY_NAME:+ ${BY_NAME[*]}} " == *" $part "* ]] || {
            echo "${0##*/}: $part: expected one of ${PARTS[*]}${BY_NAME:+ ${BY_NAME[*]}}" >&2
            exit 2
        }
    done
    for part in "${@:-${PARTS[@]}}"; do
        echo "=== $part"
        began=$SECONDS
        "$part" || failed+=("$part")
        echo "=== $part took $((SECONDS - began)) s"
    done
    [[ ${#failed[@]} == 0 ]] || { echo "failed or incomplete: ${failed[*]}"; exit 1; }
}
