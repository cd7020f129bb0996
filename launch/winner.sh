#!/usr/bin/env bash
# The whole recipe of configs/winner.py: folds by patient, each network on each fold, the ensemble's scores and its own
# thresholds on the images that its networks were not trained on, and its submission. Started again, it goes on where it
# stopped.
#
#   launch/winner.sh data/siim siim/dicom-images-test                       runs/winner_NETWORK_foldK, runs/winner
#   NETWORKS="resnet34 resnet50" FOLDS=4 launch/winner.sh data/siim siim/dicom-images-test
#   RUNS=study launch/winner.sh data/siim siim/dicom-images-test --config.model.dtype=float32
#
# The first place starts from ImageNet weights (docs/data.md says where from), one file a network; the names
# of the files hold no blanks. Without WEIGHTS the networks start untrained.
#
#   WEIGHTS="resnet34=resnet34-b627a593.pth resnet50=resnet50-0676ba61.pth \
#       se_resnext50_32x4d=se_resnext50_32x4d-a260b3a4.pth" launch/winner.sh data/siim siim/dicom-images-test
set -euo pipefail

usage() {
    echo "usage: [RUNS=FOLDER] [NETWORKS=\"resnet34 ...\"] [WEIGHTS=\"resnet34=FILE ...\"] [FOLDS=5]" \
        "launch/winner.sh DATA IMAGES [--config.a.b=VALUE ...]" >&2
    exit 2
}
refuse() {
    echo "launch/winner.sh: $1" >&2
    exit 2
}
if (($# < 2)) || [[ $1 == --* || $2 == --* ]]; then usage; fi
data=$(realpath -m "$1") images=$(realpath -m "$2")
shift 2
for argument in "$@"; do
    case $argument in
        --config.model.pretrained*) refuse "give each network a file of its own: WEIGHTS=\"resnet34=FILE ...\"." ;;
        --config.model.encoder*) refuse "NETWORKS chooses the networks, not --config.model.encoder." ;;
        --config.data.directory*) refuse "the first argument is the prepared data, not --config.data.directory." ;;
        --config.data.split=* | --config.data.fold=*) refuse "the folds are made here: leave $argument away." ;;
        --config.*) ;;
        *) usage ;;
    esac
done
# All of this is checked first: a later refusal would come after days of training.
all_networks="resnet34 resnet50 se_resnext50_32x4d"
networks=${NETWORKS:-$all_networks} count=${FOLDS:-5}
declare -A weights=()
for pair in ${WEIGHTS:-}; do
    if [[ $pair != ?*=?* ]]; then refuse "WEIGHTS holds NETWORK=FILE, and $pair is none."; fi
    network=${pair%%=*}
    if [[ " $networks " != *" $network "* ]]; then refuse "WEIGHTS: $network is none of the networks $networks."; fi
    weights[$network]=$(realpath -m "${pair#*=}")
done
cd "$(dirname "$0")/.."
for folder in "$data" "$images"; do
    if [[ ! -d $folder ]]; then refuse "there is no folder $folder."; fi
done
if [[ ! $count =~ ^[1-9][0-9]*$ ]] || ((count < 2)); then refuse "FOLDS=$count cannot be; give 2 or more."; fi
for network in $networks; do
    if [[ " $all_networks " != *" $network "* ]]; then
        refuse "there is no network $network; NETWORKS holds some of $all_networks."
    fi
    file=${weights[$network]:-}
    if [[ -z $file && -n ${WEIGHTS:-} ]]; then refuse "WEIGHTS has no file for $network; give one file a network."; fi
    if [[ -n $file && ! -f $file ]]; then refuse "WEIGHTS: there is no file $file for $network."; fi
done
for network in "${!weights[@]}"; do
    python -c '
import sys
from jaxpneumo.model.pretrained import from_torch
from jaxpneumo.model.weight_files import read_weights
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import typed
from jaxpneumo.run.config_files import read_config_file
from jaxpneumo.run.network import make_model
from jaxpneumo.run.state import variable_shapes
network, file = sys.argv[1:]
config = typed(read_config_file(f"configs/winner.py:{network}").to_dict())
try:
    from_torch(read_weights(file), variable_shapes(make_model(config.model)))
except InputError as error:
    print(f"launch/winner.sh: WEIGHTS: {file} does not fit {network}: {error}", file=sys.stderr)
    sys.exit(2)
' "$network" "${weights[$network]}"
done
runs=${RUNS:-runs}
mkdir -p "$runs"
folds=$(realpath "$runs")/winner-folds-$count.json
if [[ ! -f $folds ]]; then
    python -m jaxpneumo split --data "$data" --method patient --folds "$count" --output "$folds"
fi
all=()
for network in $networks; do
    start=()
    if [[ -n ${weights[$network]:-} ]]; then start=("--config.model.pretrained=${weights[$network]}"); fi
    # Not in an array job: each fold of each network is needed below.
    env -u SLURM_ARRAY_TASK_ID FOLDS="$(seq -s " " 0 $((count - 1)))" RUNS="$runs" NAME="winner_$network" \
        launch/folds.sh "configs/winner.py:$network" "$folds" --config.data.directory="$data" \
        ${start[@]+"${start[@]}"} "$@"
    for fold in $(seq 0 $((count - 1))); do all+=(--workdir "$runs/winner_${network}_fold$fold"); done
done
scores="$runs/winner/evaluation"
python -m jaxpneumo evaluate "${all[@]}" --output "$scores"
python -m jaxpneumo thresholds "${all[@]}" --evaluation "$scores" --rule triplet --name winner --overwrite
python -m jaxpneumo predict "${all[@]}" --input "$images" --output "$runs/winner" --thresholds winner
python -m jaxpneumo validate --submission "$runs/winner/submission.csv"
