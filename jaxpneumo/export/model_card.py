"""The README.md of a shared folder: a model card, filled from the run's config and its evaluation.

Its head is YAML, as the Hub of Hugging Face reads it; JSON is YAML too, and needs no rules for quoting.
"""

import json
from typing import Any

from jaxpneumo.data.splits import words as split_words
from jaxpneumo.export.description import SCORES, USE, are_of_new_images, settings_of, was_evaluated, with_interval
from jaxpneumo.predict import saved_thresholds, trained_on
from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
from jaxpneumo.run import tta
from jaxpneumo.run.config import Config

TITLES = {
    "dice": "mean Dice of all images",
    "iou": "mean IoU of all images",
    "dice_positive": "mean Dice of images with pneumothorax",
    "sensitivity": "share of images with pneumothorax that have an outline",
    "specificity": "share of images without it that have none",
}
NOT_EVALUATED = "The run was not evaluated before it was shared: nothing is known about how good it is."

OTHERS_EVALUATED = (
    "**The thresholds, views and size of this folder were not evaluated: nothing is known about how good they are. The "
    "scores below are of other ones, {}.**"
)


def write_card(description: dict[str, Any], config: Config, summary: dict[str, Any] | None) -> str:
    """The text of the card.

    Args:
      description: the result of `description.describe`.
      config: the run's.
      summary: its evaluation; None without one. Scores of other settings than the description's, and of training
        images, are told as such, and are not in the head, which programs read.
    """
    name, size = description["run"], description["size"]
    trained = ", ".join(f"{stage.epochs} epochs at {stage.size} pixels" for stage in config.stages)
    sections = [
        _head(description, summary if was_evaluated(description) and are_of_new_images(description) else None),
        f"# {name}",
        f"**{USE} Do not use it to decide about patients.**",
        *([f"**{SYNTHETIC_NOTE}**"] if description["synthetic"] else []),
        f"A U-Net with the encoder {description['encoder']}. It outlines pneumothorax in frontal chest radiographs. It "
        f"sees them at {size} x {size} pixels, predicts {tta.words(description['tta'])} and makes masks at their own "
        f"size. Thresholds: {saved_thresholds.words(description)}. Trained by {description['program']}: {trained}.",
        "## Use",
        "```python\nimport jaxpneumo\n\n"
        'model = jaxpneumo.load("this folder")  # compares its checksums\nprint(model.predict("film.dcm"))\n```',
        "`jaxpneumo predict --workdir FOLDER` predicts an archive. `jaxpneumo import FOLDER --output RUN` makes a run "
        "of the folder, which training can start from. `sha256sum --check SHA256SUMS` compares the checksums as well.",
        "## Scores",
        *([OTHERS_EVALUATED.format(_settings(summary))] if summary and not was_evaluated(description) else []),
        *(_scores(summary) if summary else [NOT_EVALUATED]),
        "## Limits",
        "Scores hold for images like those above. Other hospitals, devices, ages and diseases were not tested. The "
        "thresholds remove small findings. The terms of the training data may hold for the weights too. Whoever shares "
        "the folder says under which licence.",
        f"Fingerprint of the weights: `{description['model']}`.",
    ]
    return "\n\n".join(sections) + "\n"


def _head(description: dict[str, Any], summary: dict[str, Any] | None) -> str:
    tags = ["chest-x-ray", "pneumothorax", "radiology", "medical-imaging", "jax"]
    head: dict[str, Any] = {
        "license": "unknown",
        "library_name": "jaxpneumo",
        "pipeline_tag": "image-segmentation",
        "tags": [*tags, "synthetic-data"] if description["synthetic"] else tags,
    }
    if summary:
        data = summary["data"]["directory"]
        scores = {name: with_interval(summary, name)[0] for name in SCORES}
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"type": data, "name": data, "split": summary["split"]["part"]},
            "metrics": [
                {"type": name, "name": TITLES[name], "value": round(value, 4)}
                for name, value in scores.items()
                if value is not None
            ],
        }
        head["model-index"] = [{"name": description["run"], "results": [result]}]
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---"])


def _scores(summary: dict[str, Any]) -> list[str]:
    data, split = summary["data"], summary["split"]
    kind = "synthetic data" if data["synthetic"] else "data"
    leaked = split.get("validation_images_with_patient_in_training")
    known = f"Images whose patient is in training too: {'unknown' if leaked is None else leaked}."
    warning = trained_on.in_words(summary)
    shape = summary["mean_shape"] or {}
    rows = [
        f"| {TITLES[name]} | {_number(value)} | {_interval(interval)} | {_number(summary['all_empty'].get(name))} "
        f"| {_number(shape.get(name))} |"
        for name in SCORES
        for value, interval in [with_interval(summary, name)]
    ]
    return [
        f"On the {split['part']} part of the {kind} {data['directory']} ({data['images']} images, {data['positive']} "
        f"with pneumothorax), {split_words(split)}: {summary['n_images']} images, {summary['n_positive']} with "
        f"pneumothorax. {f'**{warning}**' if warning else known} Scored at {', '.join(summary['scored_at'])}, "
        f"{_settings(summary)}. Intervals are 95 % bootstrap intervals over "
        f"{summary['intervals']['unit']}s. The baselines predict nothing, and the mean shape of the training masks.",
        "\n".join(
            ["| score | value | interval | nothing | mean shape |", "| --- | --- | --- | --- | --- |", *rows],
        ),
        "\n".join(
            [
                "| group | images | with pneumothorax | mean Dice | interval |",
                "| --- | --- | --- | --- | --- |",
                *(_group(group) for group in summary["strata"]),
            ]
        ),
    ]


def _group(group: dict[str, Any]) -> str:
    value, interval = group["scores"]["dice"], group["intervals"]["dice"]
    return (
        f"| {group['stratum']}: {group['group']} | {group['n_images']} | {group['n_positive']} | {_number(value)} "
        f"| {_interval(interval)} |"
    )


def _settings(summary: dict[str, Any]) -> str:
    settings = settings_of(summary)
    gate = f", with the gate {settings['gate']}" if "gate" in settings else ""
    return f"{tta.words(settings['tta'])} at size {settings['size']}, {saved_thresholds.words(settings)}{gate}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: Any) -> str:
    return "none" if ends is None else "{:.4f} to {:.4f}".format(*ends)
