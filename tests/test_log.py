"""A run's log: lines that survive a kill, a resumed run that repeats nothing, TensorBoard scalars."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxpneumo.process.errors import InputError
from jaxpneumo.train.log import MetricsLog, progress_picture, read_log

REPOSITORY = Path(__file__).resolve().parent.parent


def epoch_record(epoch: int, **changes) -> dict:
    record = {
        "epoch": epoch,
        "train_loss": 1.5 / (epoch + 1),
        "validation_loss": 1.6 / (epoch + 1),
        "validation_iou": 0.8 - 0.5 / (epoch + 1),
        "learning_rate": 1e-3,
        "images_per_second": 21.5,
    }
    return record | changes


def events(directory: Path) -> list[Event]:
    """All TensorBoard events, in the order in which TensorBoard reads the files (TFRecord framing)."""
    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            found.append(Event.FromString(data[position + 12 : position + 12 + length]))
            position += 12 + length + 4
        assert position == len(data)
    return found


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [
        (event.step, pytest.approx(value.simple_value))
        for event in events(directory)
        for value in event.summary.value
        if value.tag == tag
    ]


def test_records_are_in_the_file_before_write_returns(tmp_path):
    path = tmp_path / "stage1" / "log.jsonl"
    with MetricsLog(tmp_path / "stage1", 0) as log:
        for epoch in range(3):
            log.write({"epoch": epoch, "loss": 0.5, "note": "ünicode"})
            assert json.loads(path.read_text().splitlines()[-1])["epoch"] == epoch
    assert read_log(path) == [{"epoch": epoch, "loss": 0.5, "note": "ünicode"} for epoch in range(3)]


def test_array_scalars_are_numbers_and_what_json_lacks_is_null(tmp_path):
    record = {
        "epoch": np.int64(2),
        "a": jnp.float32(0.25),
        "b": np.float32(np.nan),
        "c": float("inf"),
        "d": np.array(7),
    }
    with MetricsLog(tmp_path, 0) as log:
        log.write(record)
    assert read_log(tmp_path / "log.jsonl") == [{"epoch": 2, "a": 0.25, "b": None, "c": None, "d": 7}]
    assert scalars(tmp_path, "a") == [(2, 0.25)]
    assert scalars(tmp_path, "b") == []


def test_tensorboard_has_the_same_numbers(tmp_path):
    records = [epoch_record(epoch, note="text") for epoch in range(3)]
    with MetricsLog(tmp_path, 0) as log:
        for record in records:
            log.write(record)
    tags = {value.tag for event in events(tmp_path) for value in event.summary.value}
    assert tags == set(epoch_record(0)) - {"epoch"}
    for tag in tags:
        assert scalars(tmp_path, tag) == [(record["epoch"], record[tag]) for record in records]


def test_steps_go_to_tensorboard_where_records_have_them(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write({"epoch": 0, "step": 10, "loss": 0.5})
        log.write({"epoch": 1, "step": 20, "loss": 0.25})
    assert scalars(tmp_path, "loss") == [(10, 0.5), (20, 0.25)]
    with MetricsLog(tmp_path, 1) as log:
        log.write({"epoch": 1, "step": 20, "loss": 0.125})
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [11]


def test_a_resumed_run_drops_the_epochs_it_makes_again(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for epoch in range(4):
            log.write(epoch_record(epoch))
    before = cv2.imread(str(tmp_path / "progress.png"))
    with MetricsLog(tmp_path, 2) as log:
        assert [record["epoch"] for record in read_log(tmp_path / "log.jsonl")] == [0, 1]
        log.write(epoch_record(2, train_loss=9.0))
    assert [record["train_loss"] for record in read_log(tmp_path / "log.jsonl")] == [1.5, 0.75, 9.0]
    assert np.any(before != cv2.imread(str(tmp_path / "progress.png")))

    seen: list[tuple[int, float]] = []  # what TensorBoard shows: a session's start hides what comes at or after it
    for event in events(tmp_path):
        if event.HasField("session_log"):
            seen = [(step, value) for step, value in seen if step < event.step]
        seen += [(event.step, value.simple_value) for value in event.summary.value if value.tag == "train_loss"]
    assert seen == [(0, 1.5), (1, 0.75), (2, 9.0)]


def test_a_new_start_in_an_old_directory_begins_anew(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(epoch_record(0))
    with MetricsLog(tmp_path, 0):
        assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_a_line_torn_anywhere_is_left_out(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for epoch in range(2):
            log.write({"epoch": epoch, "loss": 0.5, "note": "ü"})
    whole = (tmp_path / "log.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    path = tmp_path / "torn.jsonl"
    for end in range(first, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert [record["epoch"] for record in read_log(path)] == [0]
    path.write_bytes(whole[:-1])  # only the line's end is missing
    assert [record["epoch"] for record in read_log(path)] == [0, 1]


def test_a_run_goes_on_after_a_torn_line(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"epoch": 0, "loss": 1.0}\n{"epoch": 1, "lo')
    with MetricsLog(tmp_path, 1) as log:
        log.write({"epoch": 1, "loss": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 0, "loss": 1.0}\n{"epoch": 1, "loss": 0.5}\n'


def test_a_killed_process_leaves_a_log_that_can_be_read(tmp_path):
    code = (
        "import sys, itertools\n"
        "from jaxpneumo.train.log import MetricsLog\n"
        "log = MetricsLog(sys.argv[1], 0)\n"
        "for epoch in itertools.count():\n"
        "    log.write({'epoch': epoch, 'loss': 0.5})\n"
        "    print(epoch, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY)
    for _ in range(50):
        reported = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    epochs = [record["epoch"] for record in read_log(tmp_path / "log.jsonl")]
    assert epochs == list(range(len(epochs)))
    assert len(epochs) > reported


@pytest.mark.parametrize("line", [b"{torn", b"[1, 2]", b"7", b'{"loss": 1.0}', b'{"epoch": null}'])
def test_damage_before_the_last_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"epoch": 0}\n' + line + b'\n{"epoch": 2}\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line 2 is damaged"):
        read_log(path)


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        read_log(tmp_path / "nowhere.jsonl")


def test_only_records_that_close_an_epoch_are_drawn(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write({"epoch": 0, "loss": 0.5})
        assert not (tmp_path / "progress.png").exists()
        log.write(epoch_record(0))
        assert (tmp_path / "progress.png").exists()
        log.close()  # and once more at the end of the block


@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_progress_picture_of_any_length(tmp_path, count):
    path = tmp_path / "progress.png"
    progress_picture(path, [epoch_record(epoch) for epoch in range(count)])
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert picture.shape == (400, 1200, 3)
    iou_line = np.all(picture == (0x00, 0x9E, 0x73), axis=-1)
    assert iou_line.any() == (count > 0)
    assert not iou_line[:, :400].any()  # it has the middle panel for itself
    assert not iou_line[:, 810:].any()
    assert [file.name for file in tmp_path.iterdir()] == ["progress.png"]


def test_progress_picture_leaves_gaps_where_values_are_missing(tmp_path):
    records = [epoch_record(0), epoch_record(1, validation_loss=None, train_loss=None), {"epoch": 2}]
    progress_picture(tmp_path / "gap.png", records)
    assert cv2.imread(str(tmp_path / "gap.png")) is not None


def test_importing_the_log_stays_cheap():
    code = "import sys, jaxpneumo.train.log; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True).split()
    assert "jaxpneumo.train.log" in loaded
    assert not {"matplotlib", "tensorboardX", "jax"} & set(loaded)
