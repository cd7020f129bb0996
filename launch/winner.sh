#!/usr/bin/env bash
# The whole recipe of configs/winner.py: folds by patient, each network on each fold, the ensemble's scores and its own
# thresholds on the images that its networks were not trained on, and its submission. Started again, it goes on where it
# stopped.
#
#   launch/winner.sh data/siim siim/dicom-images-test                       runs/winner_NETWORK_foldK, runs/winner
#   NETWORKS="resnet34 resnet50" FOLDS=4 launch/winner.sh data/siim siim/dicom-images-test
#   RUNS=study launch/winner.sh data/siim siim/dicom-images-test --config.model.pretrained=resnet34-b627a593.pth
set -euo pipefail

usage() {
    echo "usage: [RUNS=FOLDER] [NETWORKS=\"resnet34 ...\"] [FOLDS=5] launch/winner.sh DATA IMAGES [--config.a.b=VALUE ...]" >&2
    exit 2
}
if (($# < 2)) || [[ $1 == --* || $2 == --* ]]; then usage; fi
data=$(realpath -m "$1") images=$(realpath -m "$2")
shift 2
for argument in "$@"; do
    if [[ $argument != --config.* ]]; then usage; fi
done
cd "$(dirname "$0")/.."
for folder in "$data" "$images"; do
    if [[ ! -d $folder ]]; then
        echo "launch/winner.sh: there is no folder $folder." >&2
        exit 2
    fi
done
runs=${RUNS:-runs} networks=${NETWORKS:-resnet34 resnet50 se_resnext50_32x4d} count=${FOLDS:-5}
mkdir -p "$runs"
folds=$(realpath "$runs")/winner-folds-$count.json
if [[ ! -f $folds ]]; then
    python -m jaxpneumo split --data "$data" --method patient --folds "$count" --output "$folds"
fi
all=()
for network in $networks; do
    # Not in an array job: each fold of each network is needed below.
    env -u SLURM_ARRAY_TASK_ID FOLDS="$(seq -s " " 0 $((count - 1)))" RUNS="$runs" NAME="winner_$network" \
        launch/folds.sh "configs/winner.py:$network" "$folds" --config.data.directory="$data" "$@"
    for fold in $(seq 0 $((count - 1))); do all+=(--workdir "$runs/winner_${network}_fold$fold"); done
done
scores="$runs/winner/evaluation"
python -m jaxpneumo evaluate "${all[@]}" --output "$scores"
python -m jaxpneumo thresholds "${all[@]}" --evaluation "$scores" --rule triplet --name winner --overwrite
python -m jaxpneumo predict "${all[@]}" --input "$images" --output "$runs/winner" --thresholds winner
python -m jaxpneumo validate --submission "$runs/winner/submission.csv"
