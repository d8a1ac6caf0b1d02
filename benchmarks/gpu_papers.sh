#!/usr/bin/env bash
# The papers' speed tables with models of the papers' sizes, on a GPU, in under ten minutes; Linformer's as far as 4,096
# tokens. It has not run on a GPU yet.
#
#     bash benchmarks/gpu_papers.sh [OUT_DIR]
#
# From the root of the repository. OUT_DIR (default: runs/gpu_papers) receives a log, and a JSON file and a plot for each
# table. PYTHON is the interpreter (default: .venv/bin/python, else python3). A table that fails or outlasts its time does
# not stop the others and keeps what it has measured by then; the exit status tells whether one did.
set -u
out=${1:-runs/gpu_papers}
. "$(dirname "$0")/gpu_parts.sh"

# table NAME SECONDS FLAGS...
table() {
  part "$1" "$2" "$PYTHON" -m "benchmarks.$1" --output="$out/$1.json" --max_gigabytes=60 --seconds=0.2 "${@:3}"
}

# The limits, and five seconds each to die in, sum to 560 seconds.
table images_per_second 400 --dtype=bfloat16 --batch_sizes=1,64,256 --max_call_seconds=1 \
  --contenders=linear,softmax_cached,softmax_recomputing,lsh_1,lsh_4
table linformer_speed 150 --preset=paper --dtype=bfloat16
finish
