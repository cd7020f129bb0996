"""`jaxpneumo prepare` for an output that is finished already: the same command, another one, changed sources."""

import os
import shutil

import pytest
from preparing import refused, three_files


@pytest.fixture
def files(tmp_path):
    """Three images: 1.3 negative, 1.1 with one region, 1.2 with two overlapping ones."""
    return three_files(tmp_path)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_same_command_again_has_nothing_to_do(files, capsys):
    assert files.run() == 0
    before = stamps(files.output)
    capsys.readouterr()
    assert files.run("--workers", "2") == 0
    said = capsys.readouterr().out
    assert said == f"{files.output} is complete: 3 images, 2 positive, 1 negative, 0 set aside; nothing is left to do\n"
    assert stamps(files.output) == before
    assert not list(files.folder.glob("prepared.*"))


def test_the_same_command_again_tells_again_what_was_set_aside(files, capsys):
    files.add("1.4", [])
    assert files.run() == 3
    capsys.readouterr()
    assert files.run() == 3
    said = capsys.readouterr()
    assert "is complete: 3 images, 2 positive, 1 negative, 1 set aside; nothing is left to do" in said.out
    assert "Set aside, not in the data set: 1 image without labels." in said.err


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--seed", "1"], "seed 0, now 1"),
        (["--validation-fraction", "0.2"], "validation fraction 0.1, now 0.2"),
        (["--split", "patient"], "split random, now patient"),
        (["--sizes", "32"], "sizes [32, 64], now [32]"),
        (["--native-size", "96"], "native size None, now 96"),
        (["--require-frontal"], "frontal only False, now True"),
        (["--duplicate-pixels", "keep"], "duplicate pixels set-aside, now keep"),
        (["--on-quarantine", "error"], "on quarantine warn, now error"),
    ],
)
def test_another_command_for_a_finished_output_is_refused(files, capsys, options, changed):
    assert files.run() == 0
    before = stamps(files.output)
    refused(files, capsys, f"was prepared otherwise ({changed}). Remove it or choose another --output", *options)
    assert stamps(files.output) == before


def test_a_file_that_only_one_of_both_commands_has_is_told_by_its_option(files, capsys):
    people, key = files.folder / "patients.csv", files.folder / "key"
    people.write_text("ImageId,patient\n1.1,a\n1.2,b\n1.3,b\n")
    key.write_bytes(b"k" * 16)
    assert files.run("--patients", str(people)) == 0
    refused(files, capsys, "was prepared otherwise (--patients was given then, and is not now). Remove it or")
    both = "(--patients was given then, and is not now; --patient-key was not given then, and is now; sizes [32, 64]"
    refused(files, capsys, both, "--patient-key", str(key), "--sizes", "32")
    people.write_text("ImageId,patient\n1.1,a\n1.2,a\n1.3,b\n")
    refused(files, capsys, "was prepared otherwise (patients ", "--patients", str(people))


def test_sources_that_have_changed_since_are_refused(files, capsys):
    """A label, a file's time, a file more; and a data set that has lost a file."""
    assert files.run() == 0
    files.rows[0] += " "
    refused(files, capsys, "was prepared otherwise (labels ")
    files.rows[0] = files.rows[0].removesuffix(" ")
    assert files.run() == 0
    first = next(files.images.rglob("*.dcm"))
    status = first.stat()
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    refused(files, capsys, "was prepared otherwise (times of the files ")
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    extra = files.images / "more.dcm"
    extra.write_bytes(first.read_bytes())
    refused(files, capsys, "was prepared otherwise (files ")
    extra.unlink()
    assert files.run() == 0
    (files.output / "masks_32.npy").unlink()
    refused(files, capsys, "was prepared so, but masks_32.npy is missing there. Remove it or choose another --output")


def test_files_of_the_same_names_sizes_and_times_are_the_same_by_their_content_alone(files, capsys):
    """As of two archives that give all their files one time; a copy of the files is the same."""
    for path in files.images.rglob("*.dcm"):
        os.utime(path, (1e9, 1e9))
    assert files.run() == 0
    copy = shutil.copytree(files.images, files.folder / "copy")
    shutil.rmtree(files.images)
    shutil.copytree(copy, files.images)
    capsys.readouterr()
    assert files.run() == 0
    assert "nothing is left to do" in capsys.readouterr().out
    changed = next(files.images.rglob("1.1.dcm"))
    data = bytearray(changed.read_bytes())
    data[-100] ^= 1
    changed.write_bytes(data)
    os.utime(changed, (1e9, 1e9))
    words = "study1/1.1.dcm has the name, size and time of the one that was used, and another content. Remove it"
    refused(files, capsys, f"was prepared of other files: {words}")
