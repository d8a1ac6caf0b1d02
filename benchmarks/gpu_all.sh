#!/usr/bin/env bash
# All that a GPU is needed for, in under ten minutes: the environment, the GPU tests, and the benchmarks.
#
#     bash benchmarks/gpu_all.sh [OUT_DIR]
#
# From the root of the repository. OUT_DIR (default: runs/gpu_all) receives a log for each part, and the JSON files and
# plots of the benchmarks. PYTHON is the interpreter (default: .venv/bin/python, else python3), PEERS a directory with the
# peers' packages (benchmarks/gpu.py says how to carry them). Needs no network.
#
# A part that fails or outlasts its time does not stop the others; the exit status tells whether one did. Without a GPU the
# parts say that they are skipped, and the benchmark goes through its motions on a tiny shape.
set -u

out=${1:-runs/gpu_all}
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
mkdir -p "$out" || exit 2

summary=()
# pytest-benchmark, where it is installed, warns of processes, and warnings are errors.
quiet=(-q -p no:cacheprovider -p no:benchmark)
failed=0

# part NAME SECONDS COMMAND...: runs the command, shows and keeps what it prints.
part() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "== $name: $*"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  if [[ $status == 0 ]]; then
    summary+=("$name: finished in $((SECONDS - start)) s")
  else
    failed=1
    [[ $status == 124 || $status == 137 ]] && status="$status, out of its $limit s"
    summary+=("$name: FAILED after $((SECONDS - start)) s (status $status)")
  fi
}

skip() {
  echo "== $1: skipped, $2"
  summary+=("$1: skipped, $2")
}

# Sums to 590 seconds.
part environment 30 "$PYTHON" -c 'import json; from benchmarks.environment import describe_environment
print(json.dumps(describe_environment(), indent=1))'
platform=$(sed -n 's/.*"platform": "\(.*\)".*/\1/p' "$out/environment.log")

if [[ $platform == gpu ]]; then
  export TRANSNORMER_TEST_PLATFORM=cuda
  # Compilation takes most of the time of the tests, so six processes share the GPU.
  XLA_PYTHON_CLIENT_PREALLOCATE=false part tests 150 "$PYTHON" -m pytest tests/gpu -n 6 --dist loadgroup "${quiet[@]}"
  part gpu 330 "$PYTHON" -m benchmarks.gpu --limit_seconds=305 --output="$out/gpu.json" ${PEERS:+--peers="$PEERS"}
  part attention 80 "$PYTHON" -m benchmarks.attention --heads=16 --head_dim=128 --dtype=bfloat16 --max_gigabytes=40 \
    --backends=associative_scan,chunked,chunked_associative_scan,softmax --num_tokens=2048,8192 --seconds=0.1 \
    --output="$out/attention.json"
else
  part tests 150 "$PYTHON" -m pytest tests/gpu -n 0 "${quiet[@]}"
  part gpu 330 "$PYTHON" -m benchmarks.gpu --limit_seconds=305 --output="$out/gpu.json" --shapes=row_8k,tiny
  skip attention "its sizes are for a GPU, and jax runs on ${platform:-nothing}"
fi

echo
printf '%s\n' "${summary[@]}"
exit "$failed"
