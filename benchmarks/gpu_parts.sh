# shellcheck shell=bash
# What gpu_all.sh and gpu_papers.sh share; they source it with the directory for their results in `out`.

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
mkdir -p "$out" && : > "$out/log" || exit 2

summary=()
failed=0

# part NAME SECONDS COMMAND...: runs the command, shows what it prints and adds it to the log.
part() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "== $name: $*" | tee -a "$out/log"
  # As if interrupted by hand: pytest then shows the failures it has seen.
  timeout --signal=INT --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$out/log"
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
  echo "== $1: skipped, $2" | tee -a "$out/log"
  summary+=("$1: skipped, $2")
}

# The last words, and the exit status.
finish() {
  echo
  printf '%s\n' "${summary[@]}" | tee -a "$out/log"
  exit "$failed"
}
