#!/usr/bin/env bash
# One experiment on this machine, over all its GPUs; started again, it goes on where it stopped. SIGTERM saves first
# (exit code 75).
#
#   launch/local.sh configs/exp5.py                                   folder runs/exp5
#   launch/local.sh configs/exp5.py --config.data.directory=data/siim --workdir=runs/first
#   CUDA_VISIBLE_DEVICES=0 launch/local.sh configs/augmentation_study.py:A1
#
# One process drives all GPUs of a machine. Several processes, here or on many machines that share the folders, train as
# one where these are set, the last from 0 on; the first process listens at the address:
#
#   for i in 0 1; do
#       JAX_COORDINATOR_ADDRESS=localhost:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=$i CUDA_VISIBLE_DEVICES=$i \
#           launch/local.sh configs/exp5.py &
#   done; wait
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
    echo "usage: launch/local.sh CONFIG [--config.a.b=VALUE ...] [--workdir=FOLDER]" >&2
    exit 2
fi
config=$1
shift
cd "$(dirname "$0")/.."
exec python -m jaxpneumo.main --config="$config" "$@"
