"""docs/usage.md, "Experiment trackers": what it reads from a run's log is what the run logged."""

import ast
import json
import re
import shutil

from helpers import REPOSITORY

SECTION = (REPOSITORY / "docs/usage.md").read_text().split("## Experiment trackers\n")[1].split("\n## ")[0]
READING, TRACKING = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def test_the_numbers_of_all_stages_come_in_order(evaluated, tmp_path):
    names: dict = {}
    exec(compile(READING, "usage.md", "exec"), names)
    lines = (evaluated / "stage1/log.jsonl").read_text().splitlines()
    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        shutil.copyfile(evaluated / "stage1/log.jsonl", tmp_path / stage / "log.jsonl")
    with open(tmp_path / "stage2/log.jsonl", "a") as file:
        file.write('{"epoch": 1, "ste')  # what a killed process leaves
    found = list(names["records"](tmp_path))
    logged = [json.loads(line) for line in lines]
    last = logged[-1]["step"]
    assert [step for step, _ in found] == [*(one["step"] for one in logged), *(last + one["step"] for one in logged)]
    for (_, numbers), record in zip(found, logged, strict=False):
        assert numbers["stage1/validation_loss"] == record["validation_loss"]
        assert "stage1/step" not in numbers
    assert "stage2/validation_loss" in found[-1][1]


def test_the_trackers_lines_use_what_was_read():
    calls = [node for node in ast.walk(ast.parse(TRACKING)) if isinstance(node, ast.Call)]
    assert "records" in {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert "wandb" not in (REPOSITORY / "pyproject.toml").read_text()
