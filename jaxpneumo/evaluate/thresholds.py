"""`jaxpneumo thresholds`: chooses probability and removal thresholds, and scores them on held-out patients.

There are three rules. "image" and "component" have a probability threshold (B-TH) and a removal threshold (R-TH), see
`predict.postprocess`. "triplet" has a top threshold, an area and a bottom threshold. It empties a mask if fewer pixels
than the area reach the top threshold. Otherwise the mask has all pixels that reach the bottom threshold. With
top = bottom, it equals the rule "image". The triplet applies to whole images only. A triplet per component would be
hysteresis thresholding, which none of the papers uses.

This module uses counts, not pixels. The counts of an image give its score at each bottom threshold, and whether a top
threshold and an area keep its mask. One matrix product over the images then gives the mean scores of all triplets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.evaluate.results import read_metrics, read_summary
from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.predict.saved_thresholds import CLASSIFIER, of_part, path_of, words
from jaxpneumo.predict.workdir_options import read_workdirs
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.ranges import SEED
from jaxpneumo.score import metrics
from jaxpneumo.score.bootstrap import clusters
from jaxpneumo.score.folds import folds
from jaxpneumo.score.threshold_counts import ThresholdCounts, pool, read_counts

RULES = ("image", "component", "triplet")
SCORES = {"dice": metrics.dice, "iou": metrics.iou}
FOLDS = 5

HELP = """\
Chooses probability and removal thresholds by the mean Dice or IoU of the images that a run was evaluated on.
Not a medical device.

It also chooses thresholds on some patients and scores them on the others ("held out"). The difference to the score on
the patients they were chosen on ("in sample") is the optimism. With --choose half, the saved thresholds are chosen on
one half of the patients; each half is scored with the thresholds of the other.

rules (B-TH: probability threshold; R-TH: removal threshold, an area):
  image      removes the whole mask of an image if its area is below R-TH
  component  removes each 8-connected component with an area below R-TH
  triplet    top threshold, area, bottom threshold: removes the whole mask if fewer pixels than the area reach the top
             threshold; otherwise the mask is what reaches the bottom threshold

For a run with a classifier, the classifier's threshold is chosen together with the others: images below it stay empty.

It reads WORKDIR/evaluation/levels.npz (`jaxpneumo evaluate` writes it) and writes
  WORKDIR/evaluation/thresholds.json   the scores at all thresholds, for the three rules, and the choice
  WORKDIR/thresholds/NAME.json         the chosen thresholds, for `jaxpneumo predict --thresholds NAME`

examples:
  jaxpneumo thresholds --workdir runs/exp5
  jaxpneumo thresholds --workdir runs/exp5 --rule image --choose half --name by-image
  jaxpneumo thresholds --workdir runs/exp5 --rule image --score iou --name by-image --overwrite
  jaxpneumo predict --workdir runs/exp5 --input images --output out --thresholds triplet
  jaxpneumo thresholds --workdir runs/exp5_fold0 --workdir runs/exp5_fold1 --name folds
  jaxpneumo thresholds --workdir runs/a --workdir runs/b --evaluation ensemble --name ensemble

Several runs must have different validation images, such as the folds of one split. The thresholds are then chosen on
the validation images of all runs, and every run gets the same file.

An ensemble has thresholds of its own: `jaxpneumo evaluate` of its runs scores it, and --evaluation FOLDER chooses on
these scores. Of folds, each image is scored by the runs that were not trained on it. Where that is one run for every
image, as for the folds of one network, no mean of runs is scored.
"""


def image_scores(counts: ThresholdCounts, rule: str, score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the score of each image with its mask and with an empty mask, and which thresholds keep the mask.

    Returns:
      For "image" and "triplet": gain (N, K), the score of the mask at each bottom level minus the score of the empty
      mask; the score of the empty mask (N,); and keep (N, K, M) bool, whether top level and area keep the mask.
      For "component": gain (N, K, M), the score of the empty mask (N,), and an array without elements.
    """
    ratio = SCORES[score]
    empty = ratio(np.zeros_like(counts.truth_area), np.zeros_like(counts.truth_area), counts.truth_area)
    if rule == "component":
        tp, area, truth = counts.component_tp, counts.component_area, counts.truth_area[:, None, None]
        return ratio(tp, area - tp, truth - tp) - empty[:, None, None], empty, np.empty(0)
    tp, area, truth = counts.tp, counts.area, counts.truth_area[:, None]
    gain = ratio(tp, area - tp, truth - tp) - empty[:, None]
    smallest = counts.areas[None, :] * counts.pixels[:, None] / NATIVE_AREA
    return gain, empty, area[:, :, None] >= smallest[:, None, :]


def surface(counts: ThresholdCounts, rule: str, score: str = "dice", images: np.ndarray | None = None) -> np.ndarray:
    """Computes the mean score at every combination of thresholds.

    Args:
      counts: the result of `threshold_counts.read_counts`.
      rule: one of RULES.
      score: "dice" or "iou".
      images: (N,) bool, the images to average over; None uses all images.

    Returns:
      float64 (K, M) by bottom level and area. For "triplet", (K, M, K) by top level, area and bottom level; nan if the
      bottom level is above the top level.
    """
    every = np.ones(len(counts.pixels), bool)
    return _surface(image_scores(counts, rule, score), rule, every if images is None else images)


def _surface(terms: "Terms", rule: str, images: np.ndarray) -> np.ndarray:
    gain, empty, keep = (term[images] if term.size else term for term in terms)
    if rule == "component":
        return empty.mean() + gain.mean(axis=0)
    n, levels, areas = keep.shape
    if rule == "image":
        return empty.mean() + np.einsum("nk,nkm->km", gain, keep) / n
    mean = empty.mean() + (keep.reshape(n, -1).T.astype(float) @ gain).reshape(levels, areas, levels) / n
    top, bottom = np.arange(levels)[:, None, None], np.arange(levels)
    return np.where(bottom <= top, mean, np.nan)


Terms = tuple[np.ndarray, np.ndarray, np.ndarray]


def _with_classifier(terms: Terms, counts: ThresholdCounts) -> list[Terms]:
    """The terms at every threshold of the classifier; at the first, 0, and without a classifier it empties no image."""
    gain, empty, keep = terms
    if counts.finding is None:
        return [terms]
    decided = [counts.finding >= level for level in (0.0, *counts.thresholds)]
    return [(gain * kept.reshape(-1, *(1,) * (gain.ndim - 1)), empty, keep) for kept in decided]


def _surfaces(terms: list[Terms], rule: str, images: np.ndarray) -> np.ndarray:
    """`_surface` by threshold of the classifier, along a new first axis."""
    return np.stack([_surface(own, rule, images) for own in terms])


def best(values: np.ndarray) -> tuple[int, ...]:
    """Indices of the largest value. Among equal values it takes the first, which has the lowest thresholds."""
    return tuple(int(i) for i in np.unravel_index(np.nanargmax(values), values.shape))


def choose(
    counts: ThresholdCounts, cluster: np.ndarray, rule: str, score: str, method: str, seed: int
) -> dict[str, Any]:
    """Chooses thresholds, and scores them in sample and on held-out patients.

    Args:
      counts: the result of `threshold_counts.read_counts`.
      cluster: (N,), the number of each image's patient.
      rule: one of RULES.
      score: "dice" or "iou".
      method: "half" chooses the thresholds on one half of the patients. One half may be easier than the other, so the
        scores cover both halves: in sample, each half has its own thresholds; held out, each half has the thresholds
        of the other. "folds" chooses the thresholds on all patients, which gives the in-sample score. Held out, each
        fold has the thresholds that are best on the other folds.
      seed: random seed of the halves or folds.

    Returns:
      {"thresholds": {"threshold", ...}, "in_sample", "held_out", "optimism", "chosen_on_images", "held_out_images",
      "held_out_thresholds"}. Both scores are means over all images. The optimism is in_sample - held_out.

    Raises:
      InputError: there are too few patients.
    """
    count = 2 if method == "half" else min(FOLDS, int(cluster.max(initial=-1)) + 1)
    try:
        fold = folds(cluster, counts.truth_area > 0, count, seed)
    except ValueError as error:
        raise InputError(
            f"there are too few patients to choose thresholds on some and score them on others: {error}."
        ) from error
    terms = _with_classifier(image_scores(counts, rule, score), counts)
    everything = np.ones(len(fold), bool)
    chosen_on = fold == 0 if method == "half" else everything
    place = best(_surfaces(terms, rule, chosen_on))
    others = [best(_surfaces(terms, rule, fold != f)) for f in range(count)]
    own = others[::-1] if method == "half" else [place] * count
    surfaces = [_surfaces(terms, rule, fold == f) for f in range(count)]

    def mean(places: list[tuple[int, ...]]) -> float:
        return float(sum(surfaces[f][p] * (fold == f).sum() for f, p in enumerate(places)) / len(fold))

    in_sample, held_out = mean(own), mean(others)
    return {
        "thresholds": _named(counts, rule, place),
        "in_sample": in_sample,
        "held_out": held_out,
        "optimism": in_sample - held_out,
        "chosen_on_images": int(chosen_on.sum()),
        "held_out_images": int((~chosen_on).sum()) if method == "half" else len(fold),
        "held_out_thresholds": [_named(counts, rule, p) for p in others],
    }


def choose_all(
    counts: ThresholdCounts,
    patient: np.ndarray,
    score: str = "dice",
    method: str = "folds",
    seed: int = 0,
) -> dict[str, Any]:
    """Makes the content of thresholds.json. `patient` is (N,) str, "" if unknown; for other arguments see `choose`."""
    cluster, unit = clusters(patient)
    chosen = {rule: choose(counts, cluster, rule, score, method, seed) for rule in RULES}
    return {
        "score": score,
        "method": method,
        "seed": seed,
        **unit,
        "n_images": len(patient),
        "levels": [round(float(level), 4) for level in counts.thresholds],
        "areas": counts.areas.tolist(),
        "all_empty": float(image_scores(counts, "image", score)[1].mean()),
        "surfaces": {rule: surface(counts, rule, score).round(6).tolist() for rule in ("image", "component")},
        "rules": chosen,
    }


def _named(counts: ThresholdCounts, rule: str, place: tuple[int, ...]) -> dict[str, Any]:
    """Returns thresholds under the names of the prediction settings; the classifier's place comes first."""
    gate, place = place[0], place[1:]
    own: dict[str, Any] = {}
    if counts.finding is not None:
        own[CLASSIFIER] = round(float(counts.thresholds[gate - 1]), 4) if gate else None
    level = [round(float(value), 4) for value in counts.thresholds]
    area = [int(value) for value in counts.areas]
    if rule == "triplet":
        top, smallest, bottom = place
        return {
            "threshold": level[bottom],
            "top_threshold": level[top],
            "top_area": area[smallest],
            "removal_threshold": 0,
            "removal_rule": "image",
            **own,
        }
    return {"threshold": level[place[0]], "removal_threshold": area[place[1]], "removal_rule": rule, **own}


def table(result: dict[str, Any]) -> str:
    """Formats thresholds.json as text."""
    held_out = "held out: by folds"
    if result["method"] == "half":
        one, other = (result["rules"]["image"][f"{part}_images"] for part in ("chosen_on", "held_out"))
        held_out = (
            f"chosen on one half ({one} images), held out: the other ({other})\n"
            "scores of both halves together: in sample each with its own thresholds, held out each with the other's"
        )
    lines = [
        f"{result['n_images']} images, grouped by {result['unit']}; mean {result['score']}; {held_out}",
        f"{'rule':>10} {'in sample':>10} {'held out':>10} {'optimism':>10}   thresholds",
    ]
    for rule, chosen in result["rules"].items():
        # The difference of the rounded scores, so that the printed row adds up.
        in_sample, held_out = round(chosen["in_sample"], 4), round(chosen["held_out"], 4)
        numbers = f"{in_sample:10.4f} {held_out:10.4f} {in_sample - held_out:10.4f}"
        lines.append(f"{rule:>10} {numbers}   {words(chosen['thresholds'])}")
    lines.append(f"{'all empty':>10} {result['all_empty']:10.4f} {result['all_empty']:10.4f} {0:10.4f}")
    return "\n".join(lines)


def read_pooled(workdirs: Sequence[Path]) -> tuple[ThresholdCounts, np.ndarray, dict[str, Any]]:
    """Reads the counts of one run, or of several runs that were evaluated on different images.

    Returns:
      The counts of all images, of several runs by their ids; the patients (N,) str; a description of data and split.

    Raises:
      InputError: a run was not evaluated, or the runs differ in size, TTA or data set, or share images.
    """
    summaries = [read_summary(workdir) for workdir in workdirs]
    counts, patients = zip(*(_read_counts(workdir / "evaluation") for workdir in workdirs), strict=True)
    first = summaries[0]
    for workdir, summary in zip(workdirs[1:], summaries[1:], strict=True):
        if any(first[name] != summary[name] for name in ("input_size", "tta")):
            raise InputError(
                f"{workdirs[0]} was evaluated at size {first['input_size']} with tta={first['tta']}, {workdir} at "
                f"{summary['input_size']} with tta={summary['tta']}: thresholds hold for one size and TTA only. Choose "
                "them for each run alone."
            )
        if summaries[0].get("gate") != summary.get("gate"):
            raise InputError(f"{workdirs[0]} and {workdir} were evaluated with different gates, or one without.")
        if summaries[0]["data"]["labels_sha256"] != summary["data"]["labels_sha256"]:
            raise InputError(
                f"{workdirs[0]} and {workdir} were evaluated on different data sets. Choose for each run alone."
            )
    pooled, place = pool(counts)
    ids, times = np.unique(pooled.image_id, return_counts=True)
    if (times > 1).any():
        raise InputError(
            f"{(times > 1).sum()} images were evaluated by more than one of the runs, {ids[times > 1][0]} first. Each "
            "image counts once. For thresholds of the ensemble, score it with `jaxpneumo evaluate --output FOLDER` and "
            "give that as --evaluation FOLDER; else give runs of different folds (data.fold)."
        )
    chosen_on = {"data": summaries[0]["data"], "split": summaries[0]["split"]}
    if len(workdirs) > 1:
        runs = zip(workdirs, summaries, strict=True)
        chosen_on["split"] = {
            "part": "parts of several runs",
            "runs": [{"workdir": workdir.name, **summary["split"]} for workdir, summary in runs],
        }
    return pooled, np.concatenate(patients)[place], chosen_on


def _read_counts(folder: Path) -> tuple[ThresholdCounts, np.ndarray]:
    """The counts of an evaluation's images, and their patients (N,) str. Raises InputError if they do not fit."""
    counts, metrics = read_counts(folder / "levels.npz"), read_metrics(folder / "metrics.csv")
    if not np.array_equal(counts.image_id, metrics["ImageId"]):
        raise InputError(f"{folder}: levels.npz and metrics.csv are of different evaluations. Evaluate again.")
    return counts, metrics["patient"]


def read_evaluation(folder: Path, workdirs: Sequence[Path]) -> tuple[ThresholdCounts, np.ndarray, dict[str, Any]]:
    """Reads the counts of the evaluation of these runs together. Returns counts and patients, and the summary.

    Raises:
      InputError: the folder has no such evaluation, or it is of other runs.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise InputError(
            f"--evaluation {folder} holds no evaluation (no summary.json). Make one with `jaxpneumo evaluate --output "
            f"{folder}` and the same runs."
        )
    summary = read_json(path)
    if not isinstance(summary, dict) or "model" not in summary.get("run", {}):
        raise InputError(f"{path} is of an earlier version: run `jaxpneumo evaluate` again.")
    members = [one["workdir"] for one in summary["run"].get("members", [summary["run"]])]
    if sorted(members) != sorted(workdir.name for workdir in workdirs):
        raise InputError(f"--evaluation {folder} is of {', '.join(members)}: give exactly these runs as --workdir.")
    return *_read_counts(folder), summary


def _read(workdirs: Sequence[Path], evaluation: Path | None) -> tuple[ThresholdCounts, np.ndarray, dict[str, Any]]:
    """Counts, patients, and what a file of saved thresholds says about the settings and images of the choice."""
    if evaluation is None:
        workdirs = sorted(workdirs, key=lambda workdir: (workdir.name, str(workdir)))  # as any order of the command
        names = [workdir.name for workdir in workdirs]
        counts, patient, chosen_on = read_pooled(workdirs)
        summary = read_summary(workdirs[0])
        alone = {"model": summary["run"].get("model"), "weights": [1.0]} if len(workdirs) == 1 else {}
        facts = {"tta": summary["tta"], "size": summary["input_size"]}
        made_for = {"runs": names, **alone, **_gate_of(summary)}
        return counts, patient, {**facts, "chosen_on": chosen_on, "chosen_for": made_for}
    counts, patient, summary = read_evaluation(evaluation, workdirs)
    members = summary["run"].get("members", [{**summary["run"], "weight": 1.0}])
    return (
        counts,
        patient,
        {
            "tta": summary["tta"],
            "size": summary["input_size"],
            "chosen_on": {key: summary[key] for key in ("data", "split")},
            "chosen_for": {
                "runs": [one["workdir"] for one in members],
                "weights": [one["weight"] for one in members],
                "model": summary["run"]["model"],
                **_gate_of(summary),
            },
        },
    )


def _gate_of(summary: dict[str, Any]) -> dict[str, str]:
    return {"gate": summary["gate"]["workdir"]} if "gate" in summary else {}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo thresholds", description=HELP)
    parser.add_argument(
        "--workdir",
        action="append",
        required=True,
        help="folder of an evaluated run; repeat it, or give A,B, for several runs such as folds",
    )
    parser.add_argument(
        "--evaluation", type=places.path, metavar="FOLDER", help="choose on this evaluation of all the runs together"
    )
    parser.add_argument(
        "--rule", choices=RULES, default="triplet", help="rule whose thresholds are saved (default: triplet)"
    )
    parser.add_argument("--name", help="name of the saved thresholds (default: the rule's)")
    parser.add_argument("--overwrite", action="store_true", help="replace thresholds saved under this name")
    parser.add_argument("--score", choices=tuple(SCORES), default="dice", help="score to maximise (default: dice)")
    parser.add_argument(
        "--choose", choices=("folds", "half"), default="folds", help="how to choose and score on different patients"
    )
    parser.add_argument("--seed", type=SEED, default=0, help="random seed of the folds (default: 0)")
    options = parser.parse_args(arguments)

    name, workdirs = options.name or options.rule, read_workdirs(options.workdir)
    targets = [path_of(workdir, name) for workdir in workdirs]
    for workdir in workdirs:
        places.check_folder(workdir, "--workdir")
    folder = options.evaluation or workdirs[0] / "evaluation"
    run_report.place(folder / "thresholds.json")
    counts, patient, facts = _read(workdirs, options.evaluation)
    result = choose_all(counts, patient, options.score, options.choose, options.seed)
    chosen = result["rules"][options.rule]
    saved = {
        "rule": options.rule,
        **chosen["thresholds"],
        **facts,
        "chosen_by": {
            **{key: result[key] for key in ("score", "method", "seed", "unit")},
            "n_images": chosen["chosen_on_images"],
            "of_images": result["n_images"],
        },
        **{key: chosen[key] for key in ("in_sample", "held_out", "optimism")},
    }
    others = [target for target in targets if target.exists() and read_json(target) != saved]
    if others and not options.overwrite:
        raise InputError(f"{others[0]} holds other thresholds. Give another --name, or --overwrite to replace them.")
    if options.evaluation or len(workdirs) == 1:
        write_json(folder / "thresholds.json", result)
    for target in targets:
        write_json(target, saved)
    print(table(result))
    count, every = chosen["chosen_on_images"], result["n_images"]
    print(f"Chosen on {count} images{of_part(facts['chosen_on']['split'], count, every)}.")
    files = ", ".join(str(target) for target in targets)
    print(f"Saved {options.rule} as {files}; use it with `jaxpneumo predict --thresholds {name}`.")
    return DONE
