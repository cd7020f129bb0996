#!/usr/bin/env bash
# The papers' augmentation study: its six arms one after the other, then its tables. Started again, it goes on where
# it stopped; arms that are finished are only evaluated again.
#
#   launch/augmentation_study.sh                                          folders runs/augmentation_study_ARM
#   launch/augmentation_study.sh --config.data.directory=data/siim
#   RUNS=study ARMS="none A1" launch/augmentation_study.sh --config.stage1.epochs=2
set -euo pipefail

for argument in "$@"; do
    if [[ $argument != --config.* ]]; then
        echo "usage: [RUNS=FOLDER] [ARMS=\"none A1 ...\"] launch/augmentation_study.sh [--config.a.b=VALUE ...]" >&2
        exit 2
    fi
done
cd "$(dirname "$0")/.."
runs=${RUNS:-runs}
arms=${ARMS:-none A1 A2 A1+A2 A3 A4}
for arm in $arms; do
    if [[ ! $arm =~ ^(none|A1|A2|A1\+A2|A3|A4)$ ]]; then
        echo "launch/augmentation_study.sh: there is no arm $arm; ARMS holds some of none A1 A2 A1+A2 A3 A4." >&2
        exit 2
    fi
done
for arm in $arms; do
    echo "== augmentation study, arm $arm"
    python -m jaxpneumo.main --config="configs/augmentation_study.py:$arm" \
        --workdir="$runs/augmentation_study_$arm" "$@"
done
exec python -m jaxpneumo tables --runs "$runs"
