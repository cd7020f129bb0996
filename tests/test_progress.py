"""What the bars say: nothing that seems to hang, and nothing where nobody wants to read it."""

import pytest

from jaxpneumo.evaluate import evaluate
from jaxpneumo.predict import predict
from jaxpneumo.process import command
from jaxpneumo.process.errors import DONE


def verb(name, evaluated, radiographs, output):
    if name == "evaluate":
        return evaluate.main, ["--workdir", str(evaluated), "--output", str(output)]
    images = ["--input", str(radiographs / "dicom"), "--output", str(output), "--overlays", "0"]
    return predict.main, ["--workdir", str(evaluated), *images]


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_the_bar_says_that_the_first_call_is_compiled(name, evaluated, radiographs, tmp_path, capsys):
    main, arguments = verb(name, evaluated, radiographs, tmp_path / "out")
    assert main(arguments) == DONE
    bars = capsys.readouterr().err.replace("\r", "\n").splitlines()
    said = [bar for bar in bars if "compiling, once" in bar]
    assert said
    assert all(bar.startswith(f"{name}:   0%") for bar in said)
    assert any(bar.startswith(f"{name}: 100%") for bar in bars)


def test_quiet_means_quiet(evaluated, radiographs, tmp_path, capsys, as_before):
    main, arguments = verb("predict", evaluated, radiographs, tmp_path / "out")
    assert command.run("predict", main, [*arguments, "--quiet"]) == DONE
    assert capsys.readouterr().err == ""
