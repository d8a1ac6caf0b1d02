#!/bin/bash
# Trains on the hosts of a Cloud TPU slice, by ssh to all of them at once. Not tried on a TPU.
#
#   TPU=my-tpu ZONE=us-east5-a examples/tpu_vm.sh install URL_OF_THIS_REPOSITORY
#   TPU=my-tpu ZONE=us-east5-a examples/tpu_vm.sh start --config=configs/tnl_7b.py --workdir=gs://BUCKET/tnl_7b \
#     --config.data.data_dir=gs://BUCKET/data --config.data.files='gs://BUCKET/text/*.txt.xz' \
#     --config.data.tokenizer=gs://BUCKET/tokenizer
#   TPU=my-tpu ZONE=us-east5-a examples/tpu_vm.sh log | stop
#
# `start` goes on when this shell ends. On every host a loop starts train.py again after status 75 (stopped by a signal)
# and 3 (another process was lost); they resume together. `stop` ends the loops, then the run, with a checkpoint.
# A slice that was preempted has to be made again, with `install` and the same `start`: the run resumes from the bucket.
set -eu

on() {  # WORKER COMMAND
    gcloud compute tpus tpu-vm ssh "${TPU:?name of the slice}" --zone="${ZONE:?its zone}" --worker="$1" --command="$2"
}

# shellcheck disable=SC2016  # expanded on the hosts
again='until "$@"; do s=$?; [ $s = 75 ] || [ $s = 3 ] || exit $s; [ -e ~/stop_training ] && exit $s; sleep 10; done'

case ${1:-} in
    install)
        on all "git clone ${2:?URL} transnormer_jax && cd transnormer_jax && python3 -m venv .venv && \
.venv/bin/pip install --quiet -e '.[tpu,gcs]'"
        ;;
    start)
        shift
        on all "cd transnormer_jax && rm -f ~/stop_training && \
(nohup sh -c $(printf %q "$again") train .venv/bin/python train.py $(printf '%q ' "$@") > ~/training.log 2>&1 < /dev/null &)"
        ;;
    log) on 0 "tail -n 50 -f training.log" ;;
    stop)
        on all "touch ~/stop_training"
        on 0 "pkill -TERM -f '^[.]venv/bin/python train.py'"
        ;;
    *) sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
