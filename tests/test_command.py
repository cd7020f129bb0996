"""What is typed: numbers have their range, names their spelling; the answers are one line of words."""

import os
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
from commands import MAINS, run
from helpers import REPOSITORY

from jaxpneumo import __version__
from jaxpneumo.data.prepare import prepare
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import BAD_INPUT, DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.ranges import Numbers, Several
from jaxpneumo.synthetic import radiographs

# Options whose value is no number: paths, names and words. A new option has to be here, or to have a range.
TEXTS = {
    *("--output", "--input", "--workdir", "--data", "--labels", "--patients", "--patient-key", "--images", "--runs"),
    *("--picture", "--submission", "--sample", "--scratch", "--config", "a", "b"),
    *("--method", "--split", "--name", "--thresholds", "--experiment", "--gate", "--gate-thresholds"),
    *("--evaluation", "--tta", "--what", "--model", "--runtime", "--format", "--check", "folder"),
    *("--rule", "--score", "--choose", "--mode", "--part", "--removal-rule", "--encoder", "--dtype"),
    *("--duplicate-pixels", "--on-quarantine", "--dicom", "--probabilities"),
    *("--spool", "--partners", "--title", "--host"),
    *("--dicom", "--url", "--study", "--query", "--credentials", "--authorities"),
}


class FoundError(Exception):
    """Carries a verb's parser out of its `main`."""


@pytest.fixture
def parser_of(monkeypatch):
    """Gives the parser that a verb's main makes."""

    def find(main):
        def found(self, *_):
            raise FoundError(self)

        with monkeypatch.context() as patch:
            patch.setattr(Parser, "parse_known_args", found)
            with pytest.raises(FoundError) as caught:
                main([])
        return caught.value.args[0]

    return find


def numbers_of(parser):
    return [action for action in parser._actions if isinstance(action.type, Numbers | Several)]


def outside(kind: Numbers) -> list[str]:
    """Texts that a range must refuse, from its ends alone."""
    step = 1 if kind.whole else 1e-3
    low = kind.low if kind.above_low else kind.low - step
    high = kind.high if kind.below_high else kind.high + step
    return [f"{low}", f"{high}", "nan", "inf", "-inf", "1e999", "much", "", *(["1.5"] if kind.whole else [])]


class TestNumbersOfTheCommandLine:
    @pytest.mark.parametrize("verb", MAINS)
    def test_every_option_with_a_value_has_a_range_or_is_a_text(self, verb, parser_of):
        parser = parser_of(import_module(MAINS[verb]).main)
        valued = [action for action in parser._actions if action.nargs != 0]
        plain = {name for action in valued for name in action.option_strings or [action.dest]}
        ranged = {name for action in numbers_of(parser) for name in action.option_strings}
        assert plain - ranged - TEXTS <= {"--size"}, "validate's, which has a range of its own"
        assert not [action.dest for action in valued if action.type in (int, float)]

    @pytest.mark.parametrize("verb", MAINS)
    def test_what_is_out_of_range_is_refused_in_words(self, verb, parser_of, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        main = import_module(MAINS[verb]).main
        for action in numbers_of(parser_of(main)):
            name = action.option_strings[0]
            one = action.type.of if isinstance(action.type, Several) else action.type
            for text in outside(one):
                several = [f"{text},{text}", f"{text},{text},{text},{text}"] if one is not action.type else []
                for value in [text, *several]:
                    for arguments in ([f"{name}={value}"], [name, value]):
                        refused(main, arguments, [name, value, str(action.type)])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("verb", MAINS)
    def test_help_says_the_range(self, verb, parser_of):
        parser = parser_of(import_module(MAINS[verb]).main)
        shown = " ".join(parser.format_help().split())
        for action in numbers_of(parser):
            assert str(action.type) in shown

    @pytest.mark.parametrize("verb", MAINS)
    def test_the_ends_of_a_range_and_what_is_taken_by_itself_are_allowed(self, verb, parser_of):
        for action in numbers_of(parser_of(import_module(MAINS[verb]).main)):
            one = action.type.of if isinstance(action.type, Several) else action.type
            for end, open_end in ((one.low, one.above_low), (one.high, one.below_high)):
                assert open_end or one(str(end)) == end
            values = action.type(action.default) if isinstance(action.default, str) else action.default
            assert values is None or action.type.allows(values)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["predict", "--threshold", "70"], "--threshold: 70 cannot be used; give a number from 0 to 1."),
            (["predict", "--overlays", "-1"], "--overlays: -1 cannot be used; give a whole number from 0"),
            (["predict", "--removal-threshold=1048577"], "give a whole number from 0 to 1048576."),
            (["synthesize", "--area-scale", "nan"], "give a number above 0 to 100."),
            (["prepare", "--sizes", "64,100"], "give numbers between commas, each a multiple of 32 from 32 to 4096."),
            (["prepare", "--validation-fraction=1"], "give a number from 0 to below 1."),
            (["predict", "--num-parts=0"], "give a whole number from 1 to 99999, or auto."),
            (["validate", "--size", "0x5"], "--size: 0x5 cannot be used; give HEIGHTxWIDTH"),
        ],
    )
    def test_as_the_user_sees_it(self, arguments, words, tmp_path):
        result = run("-m", "jaxpneumo", *arguments, cwd=tmp_path)
        assert result.returncode == BAD_INPUT
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


def refused(main, arguments, words):
    """Prepare tells what it refuses itself; all others raise."""
    try:
        code, told = main(arguments), ""
        assert code == BAD_INPUT
    except InputError as error:
        told = str(error)
        for word in words:
            assert word in told or not word.strip(), (arguments, told)


class TestReaderThatHasGone:
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--help"],
            ["--version"],
            ["bench"],
            ["train", "--help"],
            ["predict", "--help"],
            ["tables", "--runs", "."],
        ],
    )
    def test_ends_a_command_quietly(self, arguments, unbuffered, tmp_path):
        read, write = os.pipe()
        os.close(read)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": unbuffered}
        line = [sys.executable, "-m", "jaxpneumo", *arguments]
        result = subprocess.run(
            line, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, check=False
        )
        os.close(write)
        assert result.stderr == ""
        assert result.returncode in (0, 141)

    def test_a_full_standard_output_is_told(self, tmp_path):
        with open("/dev/full", "w") as full:
            line = [sys.executable, "-m", "jaxpneumo", "tables", "--runs", "."]
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            result = subprocess.run(
                line, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, check=False
            )
        assert result.returncode == 1
        assert result.stderr.startswith("jaxpneumo: No space left on device.")
        assert len(result.stderr.splitlines()) == 1


class TestNames:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["predcit"], 'Did you mean "predict"?'),
            (["help", "predcit"], 'Did you mean "predict"?'),
            (["bench", "stpe"], 'Did you mean "step"?'),
            (["predict", "--treshold", "0.5"], 'there is no option --treshold. Did you mean "--threshold"?'),
            (["predict", "--removal-rule", "images"], 'give one of image, component. Did you mean "image"?'),
            (["split", "--data", "x", "--method", "patients"], 'Did you mean "patient"?'),
            (["thresholds", "--rule", "triple"], 'Did you mean "triplet"?'),
        ],
    )
    def test_a_mistyped_one_is_answered_with_the_right_one(self, arguments, words, tmp_path):
        result = run("-m", "jaxpneumo", *arguments, cwd=tmp_path)
        assert (result.returncode, words in result.stderr) == (BAD_INPUT, True), result.stderr

    def test_version_and_help(self):
        for arguments in (["--version"], ["predict", "--version"], ["train", "--version"]):
            result = run("-m", "jaxpneumo", *arguments)
            assert (result.returncode, result.stdout) == (DONE, f"jaxpneumo {__version__}\n")
        assert run("-m", "jaxpneumo", "help").stdout == run("-m", "jaxpneumo", "--help").stdout
        assert run("-m", "jaxpneumo", "help", "merge").stdout == run("-m", "jaxpneumo", "merge", "--help").stdout


def test_evaluate_says_what_to_do_with_another_data_set(evaluated, tmp_path):
    main = import_module(MAINS["evaluate"]).main
    config = read_json(evaluated / "config.json")
    shutil.copytree(evaluated, tmp_path / "moved")
    config["data"]["directory"] = str(tmp_path / "gone")
    write_json(tmp_path / "moved/config.json", config)
    with pytest.raises(InputError, match=r"was not found\. Give its folder as --data"):
        main(["--workdir", str(tmp_path / "moved")])
    drawn, other = tmp_path / "drawn", tmp_path / "other"
    radiographs.write(drawn, 4, seed=9, size=64, workers=1, quiet=True)
    prepare(drawn, drawn / "labels.csv", other, (32,), workers=1, quiet=True)
    with pytest.raises(InputError, match=r"lacks 24 of the 24 images .*: it is another data set\. Give --part all"):
        main(["--workdir", str(evaluated), "--data", str(other), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
