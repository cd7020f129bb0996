"""The report: the right image in each row, whole and harmless pages, refusals in words, and the page in a browser."""

import base64
import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxpneumo.data import dataset, rle
from jaxpneumo.evaluate.results import read_metrics
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.report import figures, report
from jaxpneumo.report.gallery import outline_path

MODE = "tta_removal"


class Page(HTMLParser):
    """A page's elements as (tag, attributes) in their order, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.source = path.read_text(encoding="utf-8")
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += " ".join(data.split()) + " "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def cases(self) -> list[dict[str, str]]:
        """The gallery's rows: their data, picture, words and outlines."""
        rows: list[dict[str, str]] = []
        for tag, attributes in self.elements:
            if "data-image-id" in attributes:
                rows.append({"id": attributes["data-image-id"], "kinds": attributes["data-kinds"]})
            elif tag == "footer":
                break
            elif rows and "src" not in rows[-1] and tag == "img":
                rows[-1] |= {"src": attributes["src"], "alt": attributes["alt"]}
            elif rows and tag == "path" and attributes["class"] not in rows[-1]:
                rows[-1][attributes["class"]] = attributes["d"]
        return rows


@pytest.fixture
def workdir(evaluated, tmp_path) -> Path:
    """A run that a test may change."""
    return shutil.copytree(evaluated, tmp_path / "run")


@pytest.fixture(scope="module")
def reported(evaluated, tmp_path_factory) -> Path:
    folder = shutil.copytree(evaluated, tmp_path_factory.mktemp("reported") / "run")
    assert report.main(["--workdir", str(folder), "--experiment", "exp5"]) == DONE
    return folder


@pytest.fixture(scope="module")
def page(reported) -> Page:
    return Page(reported / "report.html")


def metrics_of(workdir: Path) -> list[dict[str, str]]:
    with open(workdir / "evaluation/metrics.csv") as file:
        return list(csv.DictReader(file))


def pixels(uri: str) -> np.ndarray:
    kind, _, code = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_UNCHANGED)


def fill(path: str, height: int, width: int) -> np.ndarray:
    """SVG path data as a mask, by the even-odd rule."""
    contours = [
        np.array([[float(x) - 0.5, float(y) - 0.5] for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", part)], np.int32)
        for part in path.split("Z")
        if part
    ]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, contours, 1)
    return mask


def test_each_row_shows_its_own_image(page, prepared):
    """The embedded pixels are those of the prepared array's row of that id, and of no other row."""
    index, (images, _) = dataset.read_index(prepared), dataset.open_arrays(prepared, 32)
    cases = page.cases()
    assert len(cases) > 5
    for case in cases:
        shown = pixels(case["src"]).astype(int)
        distance = np.abs(np.asarray(images).astype(int) - shown).mean(axis=(1, 2))
        assert index.image_id[np.argmin(distance)] == case["id"]
        assert distance.min() < 3 < np.sort(distance)[1]
        assert case["id"] in case["alt"]


def test_each_row_has_the_outlines_of_its_own_masks(page, reported, prepared):
    index, labels = dataset.read_index(prepared), dataset.read_labels(prepared)
    codes = read_submission(reported / "evaluation/submission.csv")
    drawn = 0
    for case in page.cases():
        row = index.image_id.tolist().index(case["id"])
        for name, code in (("truth", labels[case["id"]]), ("prediction", codes[case["id"]])):
            mask = rle.decode(code, int(index.height[row]), int(index.width[row]))
            outlined = fill(case[name], *mask.shape)
            assert bool(case[name]) == bool(mask.any())
            assert np.sum(outlined != mask) <= 0.05 * mask.sum()
            drawn += bool(mask.any())
    assert drawn > 5


def test_rows_go_from_the_best_dice_to_the_worst_and_have_their_kinds(page, reported):
    rows = {row["ImageId"]: row for row in metrics_of(reported)}
    cases = page.cases()
    assert {case["id"] for case in cases} == rows.keys()
    dices = [float(rows[case["id"]][f"{MODE}_dice"]) for case in cases]
    assert dices == sorted(dices, reverse=True)
    for case in cases:
        row = rows[case["id"]]
        truth, area, tp = (int(row[name]) for name in ("truth_area", f"{MODE}_area", f"{MODE}_tp"))
        kinds = {"all"} | ({"positive"} if truth else set()) | ({"miss"} if truth and not tp else set())
        assert set(case["kinds"].split()) == kinds | ({"false-alarm"} if area and not truth else set())
        assert f"Dice {float(row[f'{MODE}_dice']):.3f}" in case["alt"]


def test_fewer_images_are_taken_evenly_with_the_best_and_the_worst(workdir, page):
    report.write_report(workdir, images=4)
    few = Page(workdir / "report.html")
    every = [case["id"] for case in page.cases()]
    shown = [case["id"] for case in few.cases()]
    assert shown == [every[round(i)] for i in np.linspace(0, len(every) - 1, 4)]
    assert f"4 of {len(every)} images, taken evenly from the best Dice to the worst" in few.text


def test_page_needs_nothing_from_elsewhere_and_every_picture_has_words(page):
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    assert "url(" not in page.source
    assert "@import" not in page.source
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_scores_baseline_papers_and_provenance_are_on_it(page, reported):
    summary = read_json(reported / "evaluation/summary.json")
    for mode, scores in summary["scores"].items():
        low, high = summary["intervals"]["scores"][mode]["iou"]
        assert f"{scores['iou']:.4f}" in page.text
        assert f"[{low:.4f}, {high:.4f}]" in page.text
    assert f"{summary['all_empty']['dice']:.4f}" in page.text
    for figure in ("0.7638", "0.7822", "0.8502"):
        assert figure in page.text
    info, config = dataset.read_info(read_json(reported / "config.json")["data"]["directory"]), report.MODES
    assert info["sha256"]["labels.csv"] in page.text
    (start,) = read_json(reported / "provenance.json")["starts"]
    assert start["commit"] is None or start["commit"] in page.text
    assert f"2 x {next(iter(start['devices']))}" in page.text
    assert "jax " + start["packages"]["jax"] in page.text
    assert "SYNTHETIC" in page.text
    assert "not a medical device" in page.text
    assert "stage1.learning_rate" in page.text
    assert config[MODE] in page.text


def test_a_run_that_finds_nothing_has_a_banner(page, reported, tmp_path):
    assert "NOTHING FOUND" not in page.text
    run = shutil.copytree(reported, tmp_path / "run")
    summary = read_json(run / "evaluation/summary.json")
    summary["scores"][MODE]["sensitivity"] = 0.0
    write_json(run / "evaluation/summary.json", summary)
    path, _ = report.write_report(run)
    assert "NOTHING FOUND" in path.read_text()


@pytest.fixture
def drawn(workdir, monkeypatch):
    """Reports on an evaluation with a changed summary; returns the page, and thresholds and R-TH that figures mark."""

    def write(**changes):
        summary = read_json(workdir / "evaluation/summary.json")
        write_json(workdir / "evaluation/summary.json", summary | changes)
        marks = {}
        for name in ("threshold_surfaces", "dice_by_size"):
            draw = getattr(figures, name)
            monkeypatch.setattr(
                figures, name, lambda *given, n=name, f=draw: marks.__setitem__(n, given[-1]) or f(*given)
            )
        report.write_report(workdir)
        return Page(workdir / "report.html"), marks["threshold_surfaces"], marks["dice_by_size"]

    return write


def test_it_shows_the_thresholds_of_the_evaluation_not_of_the_config(drawn):
    page, own, removal = drawn(threshold=0.45, removal={"threshold": 512, "rule": "component"})
    assert (own["threshold"], own["removal_threshold"], own["removal_rule"]) == (0.45, 512, "component")
    assert removal == 512
    assert "The scores above are with B-TH 0.45, R-TH 512 px (component)." in page.text


def test_with_a_gate_the_removal_threshold_is_marked_too(drawn, workdir):
    summary = read_json(workdir / "evaluation/summary.json")
    gated, metrics = f"{MODE}_gated", workdir / "evaluation/metrics.csv"
    columns = read_metrics(metrics)
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    own = [n for n, name in enumerate(rows[0]) if name.startswith(f"{MODE}_")]
    rows = [[*row, *(row[n] for n in own)] for row in rows]
    rows[0][-len(own) :] = [name.replace(MODE, gated) for name in rows[0][-len(own) :]]
    with open(metrics, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    scores, ends = summary["scores"], summary["intervals"]
    _, _, removal = drawn(
        run=summary["run"] | {"mode": gated},
        scores=scores | {gated: scores[MODE]},
        intervals=ends | {"scores": ends["scores"] | {gated: ends["scores"][MODE]}},
    )
    assert removal == 20000


def test_a_triplet_is_called_a_rule_and_told_whole(drawn):
    """It has no place on the surfaces of B-TH and R-TH."""
    page, own, removal = drawn(top={"threshold": 0.8, "area": 700}, removal={"threshold": 0, "rule": "image"})
    assert (own, removal) == (None, 0)
    assert "The scores above are with top 0.8, area 700 px, bottom 0.3." in page.text
    assert "TTA + rule" in page.text
    assert "TTA + R-TH" not in page.text
    assert "R-TH 0 px" not in page.text
    assert "removes masks with fewer than 700 px of 1024x1024 that reach 0.8" in page.text


def test_calibration_names_the_limits_before_its_rule_does(drawn, workdir):
    page, _, _ = drawn()
    limits = read_json(workdir / "evaluation/calibration.json")["top_mean"]["uncertain"]
    told = f"low = {limits['low']:.4f} and high = {limits['high']:.4f}."
    assert page.text.index(told) < page.text.index("score at least low")
    assert "The expected calibration error has no interval: it is biased upwards" in page.text


def test_figures_are_files_too(page, reported):
    names = {path.stem for path in (reported / "report").iterdir()}
    assert names == {"training", "thresholds", "reliability", "strata", "dice_by_size"}
    embedded = [image["src"] for image in page.all("img") if image["src"].startswith("data:image/png")]
    for path in (reported / "report").iterdir():
        assert "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() in embedded
        assert cv2.imread(str(path)).std() > 5
    assert len(page.all("source")) == len(names)


def test_values_are_text_and_never_markup(workdir):
    config = read_json(workdir / "config.json")
    config["predict"]["input"] = "</td><script>alert('x')</script><img src=x onerror=alert(1)>&\""
    write_json(workdir / "config.json", config)
    report.write_report(workdir)
    page = Page(workdir / "report.html")
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    assert "&lt;script&gt;alert" in page.source
    assert not any("onerror" in attributes for _, attributes in page.elements)


def test_a_splits_file_is_named_without_its_path(workdir):
    config, summary = read_json(workdir / "config.json"), read_json(workdir / "evaluation/summary.json")
    config["data"]["split"] = "/home/someone/folds.json"
    config["predict"]["input"] = "/home/someone/in"
    summary["split"] |= {"file": "folds.json", "fold": 2, "folds": 5}
    write_json(workdir / "config.json", config)
    write_json(workdir / "evaluation/summary.json", summary)
    report.write_report(workdir)
    assert "split by patient (file folds.json, fold 2), no patient on both sides." in Page(workdir / "report.html").text
    assert "/home/someone" not in (workdir / "report.html").read_text()


def test_what_is_missing_is_said_with_the_command(workdir, capsys):
    for name in ("thresholds.json", "calibration.json"):
        (workdir / "evaluation" / name).unlink()
    (workdir / "stage1/log.jsonl").unlink()
    (workdir / "provenance.json").unlink()
    assert report.main(["--workdir", str(workdir)]) == DONE
    text, printed = Page(workdir / "report.html").text, capsys.readouterr().out
    for words in (f"jaxpneumo thresholds --workdir {workdir}", "No calibration yet", "No training curves"):
        assert words in text
        assert words in printed
    assert "starts were not recorded" in text
    assert "No figures of the papers beside these" in text
    assert not (workdir / "report/thresholds.png").exists()


def test_without_pneumothorax_there_is_still_a_report(workdir, prepared, tmp_path):
    """Only negatives were scored: no Dice of positives, no calibration, no figure of sizes."""
    data = shutil.copytree(prepared, tmp_path / "data")
    index = dataset.read_index(data)
    from jaxpneumo.evaluate.evaluate import evaluate
    from jaxpneumo.predict.infer import load_predictor

    split = {"method": "none", "part": "negative"}
    rows = np.flatnonzero(~index.positive)
    evaluate(load_predictor(workdir), data, rows, split, workdir / "evaluation", quiet=True, replicates=100)
    path, lacking = report.write_report(workdir, data)
    assert any("None of the images" in sentence for sentence in lacking)
    page = Page(path)
    assert {case["truth"] for case in page.cases()} == {""}
    assert not any("positive" in case["kinds"].split() for case in page.cases())


def test_unfinished_unevaluated_and_mismatched_runs_are_refused_in_words(workdir, radiographs, tmp_path):
    def refused(words: str, **arguments) -> None:
        with pytest.raises(InputError, match=words):
            report.write_report(arguments.pop("workdir", workdir), **arguments)
        assert not (workdir / "report.html").exists()

    refused("at least one image", images=0)
    refused("choose of exp1", experiment="exp6")
    refused("is not a run", workdir=tmp_path)
    refused("--data DIR", data=tmp_path / "absent")

    from jaxpneumo.data.prepare import prepare

    labels = (radiographs / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([labels[0], *(line.split(",")[0] + ",-1" for line in labels[1:])]))
    other = tmp_path / "other"
    prepare(radiographs, tmp_path / "labels.csv", other, (32, 64), workers=1, quiet=True)
    refused("another data set", data=other)

    metrics = workdir / "evaluation/metrics.csv"
    whole = metrics.read_text()
    metrics.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    refused("different evaluations")
    header, first, *rest = whole.splitlines()
    place = header.split(",").index("truth_area")
    values = first.split(",")
    values[place] = str(int(values[place]) + 1)
    metrics.write_text("\n".join([header, ",".join(values), *rest]) + "\n")
    refused("does not fit the masks")
    metrics.write_text(whole)

    submission = workdir / "evaluation/submission.csv"
    lines = submission.read_text().splitlines()
    submission.write_text("\n".join(lines[:-1]) + "\n")
    refused("different images")
    (workdir / "evaluation/summary.json").unlink()
    refused("jaxpneumo evaluate --workdir")
    shutil.rmtree(workdir / "stage1/final")
    refused("unfinished run")


def test_outline_of_hole_point_and_nothing():
    assert outline_path(np.zeros((8, 8), np.uint8)) == ""
    ring = np.zeros((64, 64), np.uint8)
    cv2.rectangle(ring, (10, 12), (50, 40), 1, -1)
    cv2.rectangle(ring, (20, 20), (30, 30), 0, -1)
    path = outline_path(ring)
    assert path.count("M") == path.count("Z") == 2
    assert path.startswith("M")
    inside = fill(path, 64, 64)
    assert inside[25, 25] == 0
    assert inside[15, 15] == 1
    point = np.zeros((8, 8), np.uint8)
    point[3, 5] = 1
    assert outline_path(point) == "M5.5 3.5Z"


def test_training_curves_stand_missing_and_huge_values():
    records = [{"epoch": n, "train_loss": 1.0, "validation_loss": value} for n, value in enumerate((900.0, None, 1.1))]
    light, dark = (
        figures.png(*figures.training({"stage1": records}), theme) for theme in (figures.LIGHT, figures.DARK)
    )
    pictures = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in (light, dark)]
    assert pictures[0].shape == pictures[1].shape
    assert pictures[0].mean() > 200 > 60 > pictures[1].mean()
