"""The manual's examples: what docs/usage.md, the launch scripts and the verbs' help show can be typed so."""

import re

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY, as_typed, load_config

from jaxpneumo import main
from jaxpneumo.data import dataset
from jaxpneumo.predict import png
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.process.errors import DONE
from jaxpneumo.run.config import typed

MANUAL = (REPOSITORY / "docs/usage.md").read_text()
SHOWN = "\n".join([MANUAL, str(main.__doc__), *(path.read_text() for path in (REPOSITORY / "launch").glob("*.sh"))])


def block(after: str) -> str:
    """The first block of Python below some words of the manual."""
    return MANUAL.split(after)[1].split("```python\n")[1].split("```")[0]


def trainings() -> list[tuple[str, tuple[str, ...]]]:
    """Each example that trains a shipped config with changed values: the config, and the changes."""
    found = re.findall(r"(?:--config=|local\.sh |folds\.sh )configs/(\w+)\.py (.*)", SHOWN)
    changes = [(name, tuple(re.findall(r"--config\.([\w.]+=[^\s`]+)", rest))) for name, rest in found]
    return sorted({(name, values) for name, values in changes if values})


@pytest.mark.parametrize(("name", "changes"), trainings(), ids=str)
def test_values_that_examples_change_make_a_config(monkeypatch, name, changes):
    configs = []
    monkeypatch.setattr(main, "run", lambda config, _: configs.append(typed(config.to_dict())) or DONE)
    assert main.main([f"--config=configs/{name}.py", *(f"--config.{change}" for change in changes)]) == DONE
    assert len(configs) == 1


def test_a_stage_is_added_to_a_config_as_shown():
    config = load_config("exp2")
    exec(block("To add a stage"), {"config": config})
    first, second = as_typed(config).stages
    assert (second.name, second.size, second.batch_size, second.epochs) == ("stage2", 512, 16, 70)
    assert (first.size, second.swa_epochs, as_typed(config).predict.size) == (256, first.swa_epochs, 512)


def test_the_picture_in_the_readme_is_made_as_shown(monkeypatch):
    made = []
    monkeypatch.setattr(png, "write_png", lambda name, picture: made.append((name, picture)))
    exec(block("## The picture in the README"), {})
    ((name, picture),) = made
    shipped = cv2.imread(str(REPOSITORY / name))[..., ::-1]
    assert picture.shape == shipped.shape
    assert np.abs(picture.astype(int) - shipped).mean() < 1, "versions of OpenCV round differently"


def test_the_network_alone_gives_the_logits_of_the_run(evaluated, prepared):
    images = np.asarray(dataset.open_arrays(prepared, 32)[0][:4])
    names = {"images": images[..., None] / np.float32(255)}
    exec(block("The network alone").replace("runs/exp5", str(evaluated)), names)
    assert names["logits"].shape == (4, 32, 32)
    predictor = load_predictor(evaluated)
    plain = predictor.outputs(predictor.variables, images, False)[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-names["logits"])), np.asarray(plain)[0], atol=1e-5)
