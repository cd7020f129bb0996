"""`jaxpneumo compare A B`: compares two runs on the same images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data.splits import words
from jaxpneumo.evaluate.modes import MODES
from jaxpneumo.evaluate.results import read_metrics, read_summary
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.ranges import REPLICATES, SEED
from jaxpneumo.score import bootstrap, scores
from jaxpneumo.score.scores import DISTANCES, REGIONS, Ratios

HELP = """\
Compares two evaluated runs image by image. It prints each score of both runs, the difference with a 95 % bootstrap
interval, and the p value of a sign-flip permutation test. Both runs must have scored the same images of the same
data set. Not a medical device.

Where patients are known, bootstrap and test draw patients, not single images. A score to which fewer than five patients
contribute has no interval, and one of a single patient no p value. A difference that is the same for all patients has
no interval. Images that either evaluation gives to one patient are drawn together.

Distances (Hausdorff, surface) are of the images that both runs outline: each run's own mean would be better without the
images that it outlines worst. Those means are in the runs' evaluations.

Each run is compared with its own settings, unless --mode names plain, tta, removal or tta_removal. The p values are not
corrected for the number of scores: choose the score that counts beforehand.

examples:
  jaxpneumo compare runs/exp4 runs/exp5
  jaxpneumo compare --mode tta --output exp4-exp5.json runs/exp4 runs/exp5
"""


def compare(a: Path, b: Path, mode: str | None, replicates: int, seed: int) -> dict[str, Any]:
    """Compares the evaluations of two runs.

    Args:
      a, b: folders of the runs.
      mode: the mode to compare; None uses each run's own mode.
      replicates, seed: number of replicates and seed of the bootstrap and the test.

    Returns:
      {"a", "b", "modes", "n_images", "n_positive", "unit", "clusters", ..., "scores": result of `bootstrap.paired`}. A
      distance in "scores" has its numbers of images as well: "images" that it is of, "images_a" and "images_b" that
      have one in the one and in the other run.

    Raises:
      InputError: a run is unfinished or not evaluated, or the runs were evaluated on different data, splits or images.
    """
    summaries = [read_summary(run) for run in (a, b)]
    tables = [read_metrics(run / "evaluation/metrics.csv") for run in (a, b)]
    _check_same(a, b, summaries, tables)
    # Sorts by image id, because the runs may list the images in different orders.
    tables = [{name: column[np.argsort(table["ImageId"])] for name, column in table.items()} for table in tables]
    modes = [mode or summary["run"]["mode"] for summary in summaries]
    one, other = (_ratios(table, mode, run) for table, mode, run in zip(tables, modes, (a, b), strict=True))
    cluster, unit = bootstrap.clusters(bootstrap.joined(*(table["patient"] for table in tables)))
    measured = {name: (one[name][1] > 0, other[name][1] > 0) for name in DISTANCES}
    one, other = (
        runs | {name: scores.select({name: runs[name]}, of_a & of_b)[name] for name, (of_a, of_b) in measured.items()}
        for runs in (one, other)
    )
    found = bootstrap.paired(one, other, cluster, replicates, seed)
    for name, (of_a, of_b) in measured.items():
        counts = {"images": of_a & of_b, "images_a": of_a, "images_b": of_b}
        found[name] |= {key: int(images.sum()) for key, images in counts.items()}
    return {
        "a": str(a),
        "b": str(b),
        "modes": modes,
        "data": summaries[0]["data"],
        "split": summaries[0]["split"],
        "n_images": summaries[0]["n_images"],
        "n_positive": summaries[0]["n_positive"],
        **unit,
        "replicates": replicates,
        "seed": seed,
        "scores": found,
    }


def _check_same(a: Path, b: Path, summaries: list[dict[str, Any]], tables: list[dict[str, np.ndarray]]) -> None:
    for run, summary, table in zip((a, b), summaries, tables, strict=True):
        if len(table["ImageId"]) != summary["n_images"]:
            raise InputError(
                f"{run}/evaluation does not fit together: summary.json has {summary['n_images']} images, metrics.csv "
                f"{len(table['ImageId'])}. Run `jaxpneumo evaluate --workdir {run}` again."
            )
    first, second = (summary["data"] for summary in summaries)
    if first["labels_sha256"] != second["labels_sha256"]:
        raise InputError(
            f"{a} was evaluated on the data set {first['directory']} ({first['images']} images), {b} on another one, "
            f"{second['directory']} ({second['images']} images): their scores cannot be compared. Evaluate both with "
            "the same --data."
        )
    ids = [set(table["ImageId"].tolist()) for table in tables]
    if ids[0] != ids[1]:
        if summaries[0]["split"]["part"] != summaries[1]["split"]["part"]:
            one, other = (f"the {summary['split']['part']} part" for summary in summaries)
            raise InputError(f"{a} was evaluated on {one} and {b} on {other}. Evaluate both on the same part.")
        parts = [f"{words(s['split'])}, {s['split']['part']} part" for s in summaries]
        raise InputError(
            f"{a} ({parts[0]}) and {b} ({parts[1]}) were evaluated on different images, so on another split: "
            f"{len(ids[0] - ids[1])} images are in the first only, {len(ids[1] - ids[0])} in the second only. Train "
            "both with one --config.data.split, for instance the first run's splits.json."
        )


def _ratios(table: dict[str, np.ndarray], mode: str, run: Path) -> Ratios:
    try:
        tp, area, truth = (table[name].astype(int) for name in (f"{mode}_tp", f"{mode}_area", "truth_area"))
        columns = {"tp": tp, "fp": area - tp, "fn": truth - tp, "lesions": table["lesions"].astype(int)}
        columns |= {name: table[f"{mode}_{name}"].astype(int) for name in REGIONS[1:]}
        for name in DISTANCES:
            values = table[f"{mode}_{name}"]
            columns[name] = np.where(values == "", "nan", values).astype(float)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{run}/evaluation/metrics.csv is damaged ({error}). Run `jaxpneumo evaluate` again."
        ) from error
    if wrong := [name for name in ("tp", "fp", "fn", "lesions", *REGIONS[1:]) if (columns[name] < 0).any()]:
        meant = {"tp": f"{mode}_tp is negative", "fp": f"{mode}_area is less than {mode}_tp"}
        meant["fn"] = f"{mode}_tp is more than truth_area"
        raise InputError(
            f"{run}/evaluation/metrics.csv is damaged: {meant.get(wrong[0], f'{wrong[0]} is negative')} in some image. "
            "Run `jaxpneumo evaluate` again."
        )
    return scores.ratios(columns)


def table(result: dict[str, Any]) -> str:
    """Formats the comparison as text."""
    split = result["split"]
    lines = [
        f"A {result['a']} ({result['modes'][0]}), B {result['b']} ({result['modes'][1]})",
        f"{result['n_images']} images ({result['n_positive']} positive) of {result['data']['directory']}, "
        f"{words(split)}, {split['part']} part; {result['clusters']} {result['unit']}s",
        f"{'':>24} {'A':>9} {'B':>9} {'B - A':>9} {'95 % interval':>22} {'p':>7}",
    ]
    for name, score in result["scores"].items():
        numbers = [f"{score[key]:9.4f}" if score[key] is not None else f"{'-':>9}" for key in ("a", "b", "difference")]
        ends = "-" if score["difference"] is None else "no interval"
        ends = "[{:+.4f}, {:+.4f}]".format(*score["interval"]) if score["interval"] else ends
        p = "-" if score["p"] is None else f"{score['p']:.4f}"
        lines.append(f"{name:>24} {' '.join(numbers)} {ends:>22} {p:>7}")
        if "images" in score:
            lines[-1] += f"   {score['images']} images (A {score['images_a']}, B {score['images_b']})"
    if any("images" in score for score in result["scores"].values()):
        lines.append("Distances are of the positive images that both runs outline.")
    if result["clusters"] < 2:
        lines.append(f"No intervals and no p values: all images are of one {result['unit']}.")
    elif result["clusters"] < bootstrap.FEWEST:
        lines.append(f"No intervals: there are fewer than {bootstrap.FEWEST} {result['unit']}s.")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    parser = Parser(prog="jaxpneumo compare", description=HELP)
    parser.add_argument("a", type=places.path, metavar="A", help="folder of an evaluated run")
    parser.add_argument("b", type=places.path, metavar="B", help="folder of another evaluated run")
    parser.add_argument("--mode", choices=tuple(MODES), help="compare both runs in this mode (default: each run's own)")
    parser.add_argument("--output", type=places.file_to_write, help="also write the result as JSON")
    parser.add_argument("--replicates", type=REPLICATES, default=10_000, help="number of replicates (default: 10000)")
    parser.add_argument("--seed", type=SEED, default=bootstrap.SEED, help="random seed (default: 0)")
    options = parser.parse_args(arguments)

    if options.output:
        run_report.place(options.output)
    result = compare(options.a, options.b, options.mode, options.replicates, options.seed)
    print(table(result))
    if options.output:
        write_json(options.output, result)
    return DONE
