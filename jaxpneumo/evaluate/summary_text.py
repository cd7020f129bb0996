"""An evaluation's summary.json as text for the terminal."""

from collections.abc import Sequence
from typing import Any

from jaxpneumo.data.splits import words
from jaxpneumo.evaluate.modes import image_score, title
from jaxpneumo.evaluate.results import nothing_found
from jaxpneumo.predict import saved_thresholds, trained_on
from jaxpneumo.predict.certainty import SCORE_WORDS
from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
from jaxpneumo.score import bootstrap

NOTE = "Research software, not a medical device."


def table(summary: dict[str, Any]) -> str:
    """Formats summary.json as text: scores of all modes and baselines, then detection and distances of the own mode."""
    kind = "SYNTHETIC" if summary["data"]["synthetic"] else "real"
    intervals, own = summary["intervals"], summary["run"]["mode"]
    lines = [
        f"{summary['n_images']} images ({summary['n_positive']} positive), {kind} data "
        f"{summary['data']['directory']}, {words(summary['split'])}, {summary['split']['part']} part; "
        f"predicted at {summary['input_size']}, scored at {', '.join(summary['scored_at'])}; {_thresholds(summary)}",
        f"{'':>20} {'Dice':>23} {'IoU':>23} {'Dice positives':>23} {'Dice negatives':>14}",
    ]
    triplet = "top" in summary
    rows = [(title(mode, triplet), scores, intervals["scores"][mode]) for mode, scores in summary["scores"].items()]
    rows.append(("all empty", summary["all_empty"], intervals["all_empty"]))
    if summary["mean_shape"]:
        rows.append(("mean shape", summary["mean_shape"], intervals["mean_shape"]))
    for name, scores, ends in rows:
        texts = [with_interval(scores[key], ends[key]) for key in ("dice", "iou", "dice_positive")]
        negative = with_interval(scores["dice_negative"], None)
        lines.append(f"{name:>20} {texts[0]:>23} {texts[1]:>23} {texts[2]:>23} {negative:>14}")

    def one(label: str, key: str) -> str:
        return f"{label} {with_interval(summary['scores'][own][key], intervals['scores'][own][key])}"

    view, score = image_score(summary)
    level, ends = summary["image_level"][view][score], intervals["image_level"][view][score]
    lines += [
        f"{title(own, triplet)}: {one('sensitivity', 'sensitivity')}, {one('specificity', 'specificity')}",
        f"image-level score ({SCORE_WORDS[score]}): AUROC {with_interval(level['auroc'], ends['auroc'])}, "
        f"average precision {with_interval(level['average_precision'], ends['average_precision'])}, "
        f"expected calibration error {with_interval(level['expected_calibration_error'], None)} (no interval)",
        f"{one('labelled regions that were met', 'lesion_sensitivity')}, "
        f"{one('predicted regions that are real', 'lesion_precision')}; outlines: "
        f"{one('Hausdorff distance 95 %', 'hausdorff95_px')} px, "
        f"{one('mean surface distance', 'surface_distance_px')} px",
        f"[{bootstrap.words(intervals)}]",
    ]
    if warning := nothing_found(summary):
        lines.append(warning)
    if own := summary.get("classifier"):
        left = summary["n_images"] - own["images_kept"]
        lines.append(f"classifier: below {own['threshold']:g} for {left} of {summary['n_images']} images: empty.")
    if gate := summary.get("gate"):
        lines.append(
            f"gate: {gate['workdir']} ({saved_thresholds.words(gate)}) leaves "
            f"{summary['n_images'] - gate['images_kept']} of {summary['n_images']} images empty."
        )
        if gate["images_in_training"]:
            lines.append(
                f"The gate was trained on {gate['images_in_training']} of these images: the scores with it are better "
                "than on new images."
            )
        if gate["images_in_training"] is None:
            lines.append("It is not known which of these images the gate was trained on.")
    if warning := trained_on.in_words(summary):
        lines.append(warning)
    if summary["run"].get("trained_on_synthetic"):
        lines.append(SYNTHETIC_NOTE)
    return "\n".join([*lines, NOTE])


def _thresholds(summary: dict[str, Any]) -> str:
    top, removal = summary.get("top"), summary["removal"]
    words = (
        f"probability threshold {summary['threshold']}, removal threshold {removal['threshold']} px ({removal['rule']})"
    )
    return f"{words}, top threshold {top['threshold']} with an area of {top['area']} px" if top else words


def with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    """Formats a score and its interval: "0.8356 [0.8201, 0.8502]", or "-" without a score."""
    if value is None:
        return "-"
    digits = 4 if abs(value) < 2 else 1
    return f"{value:.{digits}f}" + (f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else "")
