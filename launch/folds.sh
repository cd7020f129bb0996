#!/usr/bin/env bash
# k-fold training: one run a fold, one after the other. Started again, it goes on where it stopped; folds that are
# finished are only evaluated again. In a Slurm array each task runs the fold of its own number.
#
#   jaxpneumo split --data data/siim --method patient --folds 5 --output data/siim-folds.json
#   launch/folds.sh configs/exp5.py data/siim-folds.json                    folders runs/exp5_fold0 .. runs/exp5_fold4
#   launch/folds.sh configs/exp5.py data/siim-folds.json --config.stage1.epochs=20
#   RUNS=study NAME=first FOLDS="0 3" launch/folds.sh configs/exp5.py data/siim-folds.json
#   sbatch --array=0-4 --gres=gpu:1 --wrap "launch/folds.sh configs/exp5.py data/siim-folds.json"
set -euo pipefail

usage() {
    echo "usage: [RUNS=FOLDER] [NAME=NAME] [FOLDS=\"0 1 ...\"] launch/folds.sh CONFIG FOLDS.json" \
        "[--config.a.b=VALUE ...]" >&2
    exit 2
}
if (($# < 2)) || [[ $1 != *.py* || $2 == --* ]]; then usage; fi
config=$1 file=$2
shift 2
for argument in "$@"; do
    if [[ $argument != --config.* ]]; then usage; fi
    if [[ $argument == --config.data.split=* || $argument == --config.data.fold=* ]]; then
        echo "launch/folds.sh: leave $argument away; the folds are those of $file, and FOLDS chooses some." >&2
        exit 2
    fi
done
cd "$(dirname "$0")/.."
if [[ ! -f $file ]]; then
    echo "launch/folds.sh: there is no file $file here; make it with \`jaxpneumo split --folds K --output $file\`." >&2
    exit 2
fi
runs=${RUNS:-runs}
name=$(basename "$config")
name=${NAME:-${name/.py/}}
name=${name/:/_}
if ! command -v python >/dev/null; then
    echo "launch/folds.sh: there is no python on the PATH; activate the environment that has jaxpneumo." >&2
    exit 2
fi
# The number of folds; 0 where the file has none, or is no JSON.
count=$(python -c '
import json, sys
try:
    folds = json.load(open(sys.argv[1], encoding="utf-8"))["folds"]
    print(len(folds) if isinstance(folds, list) else 0)
except (KeyError, TypeError, ValueError, OSError):
    print(0)
' "$file")
if ((count == 0)); then
    echo "launch/folds.sh: $file has no folds; make some with \`jaxpneumo split --folds K --output FILE.json\`." >&2
    exit 2
fi
folds=${SLURM_ARRAY_TASK_ID:-${FOLDS:-$(seq -s " " 0 $((count - 1)))}}
for fold in $folds; do
    if [[ ! $fold =~ ^[0-9]+$ ]] || ((10#$fold >= count)); then
        echo "launch/folds.sh: there is no fold $fold; $file has the folds 0 to $((count - 1))." >&2
        exit 2
    fi
done
for fold in $folds; do
    echo "== $name, fold $fold of 0 to $((count - 1))"
    python -m jaxpneumo.main --config="$config" --workdir="$runs/${name}_fold$fold" \
        --config.data.split="$file" --config.data.fold="$fold" "$@"
done
