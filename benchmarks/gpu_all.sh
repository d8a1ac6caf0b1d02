#!/usr/bin/env bash
# All that a GPU is needed for, in under ten minutes: the environment, the GPU tests, and the benchmarks.
#
#     bash benchmarks/gpu_all.sh [OUT_DIR]
#
# From the root of the repository. OUT_DIR (default: runs/gpu_all) receives a log, and the JSON files and plots of the
# benchmarks. PYTHON is the interpreter (default: .venv/bin/python, else python3), PEERS a directory with the peers'
# packages (benchmarks/gpu.py says how to carry them). Needs no network.
#
# A part that fails or outlasts its time does not stop the others, and a benchmark keeps what it has measured by then; the
# exit status tells whether one did. Without a GPU the parts say that they are skipped, and the benchmark goes through its
# motions on a tiny shape.
set -u
out=${1:-runs/gpu_all}
. "$(dirname "$0")/gpu_parts.sh"

# pytest-benchmark, where it is installed, warns of processes, and warnings are errors.
quiet=(-q -p no:cacheprovider -p no:benchmark)

# The limits, and five seconds each to die in, sum to 570 seconds.
part environment 60 "$PYTHON" -c 'import json; from benchmarks.common import describe_environment
print(json.dumps(describe_environment(), indent=1))'
platform=$(sed -n 's/.*"platform": "\(.*\)".*/\1/p' "$out/log")
if [[ $platform != gpu ]] && nvidia-smi -L > /dev/null 2>&1; then
  failed=1
  summary+=("environment: there is a GPU, and jax runs on ${platform:-nothing}: mend jax, or name another PYTHON")
  platform=${platform:-gpu} # It may have been slow to start: the others are tried all the same.
fi

if [[ $platform == gpu ]]; then
  export TRANSNORMER_TEST_PLATFORM=cuda
  # Compilation takes most of the time of the tests, so six processes share the GPU.
  XLA_PYTHON_CLIENT_PREALLOCATE=false part tests 120 "$PYTHON" -m pytest tests/gpu -n 6 --dist loadgroup "${quiet[@]}"
  part gpu 310 "$PYTHON" -m benchmarks.gpu --limit_seconds=270 --output="$out/gpu.json" ${PEERS:+--peers="$PEERS"}
  # What compiles longest comes last.
  part attention 60 "$PYTHON" -m benchmarks.attention --heads=16 --head_dim=128 --dtype=bfloat16 --max_gigabytes=40 \
    --backends=chunked,chunked_associative_scan,softmax,associative_scan --num_tokens=2048,8192 --seconds=0.1 \
    --output="$out/attention.json"
else
  part tests 120 "$PYTHON" -m pytest tests/gpu -n 0 "${quiet[@]}"
  part gpu 310 "$PYTHON" -m benchmarks.gpu --limit_seconds=270 --output="$out/gpu.json" --shapes=row_8k,tiny
  skip attention "its sizes are for a GPU, and jax runs on ${platform:-nothing}"
fi
finish
