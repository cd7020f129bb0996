#!/usr/bin/env bash
# One experiment on this machine, over all its GPUs; started again, it goes on where it stopped.
#
#   launch/local.sh configs/exp5.py                                   folder runs/exp5
#   launch/local.sh configs/exp5.py --config.data.directory=data/siim --workdir=runs/first
#   CUDA_VISIBLE_DEVICES=0 launch/local.sh configs/augmentation_study.py:A1
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
    echo "usage: launch/local.sh CONFIG [--config.a.b=VALUE ...] [--workdir=FOLDER]" >&2
    exit 2
fi
config=$1
shift
cd "$(dirname "$0")/.."
exec python -m jaxpneumo.main --config="$config" "$@"
