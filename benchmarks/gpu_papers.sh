#!/usr/bin/env bash
# The speed tables of the papers at the papers' sizes, on a GPU, in under ten minutes; it has not run on one yet.
#
#     bash benchmarks/gpu_papers.sh [OUT_DIR]
#
# From the root of the repository. OUT_DIR (default: runs/gpu_papers) receives a JSON file, a plot and a log for each
# table. PYTHON is the interpreter (default: python3). A table that fails or outlasts its time does not stop the others;
# the exit status tells whether one did.
set -u

out=${1:-runs/gpu_papers}
mkdir -p "$out" || exit 2
failed=0

table() {
  local name=$1
  shift
  timeout --kill-after=10 190 "${PYTHON:-python3}" -m "benchmarks.$name" --output="$out/$name.json" "$@" 2>&1 |
    tee "$out/$name.log"
  [[ ${PIPESTATUS[0]} == 0 ]] || failed=1
}

table images_per_second --dtype=bfloat16 --max_gigabytes=60
table steps_per_second --preset=paper --max_gigabytes=60
table linformer_speed --preset=paper --dtype=bfloat16 --max_gigabytes=60
exit "$failed"
