"""Waiting images and a model that fails: nothing that is not an image's own fault costs an image."""

import json
import os
import threading
import time

import pytest

from jaxpneumo.process.errors import InputError
from jaxpneumo.serve import predicting
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.model_process import LostError, ModelProcess, Verdict
from jaxpneumo.serve.spool import ASIDE, DONE, INCOMING, WORKING, Spool


class Model:
    """In place of the process: each look and each start does the next thing of a list."""

    def __init__(self, looks=(), starts=()):
        self.looks, self.starts, self.ready, self.seen = list(looks), list(starts), True, []

    def look(self, image, into):
        self.seen.append(image.parent.name)
        answer = self.looks.pop(0) if self.looks else Verdict()
        if isinstance(answer, LostError):
            self.ready = False
        if isinstance(answer, Exception):
            raise answer
        return answer

    def start(self):
        if self.starts and (error := self.starts.pop(0)):
            raise error
        self.ready = True


@pytest.fixture
def spool(tmp_path):
    one = Spool(tmp_path / "spool")
    os.close(one.open())
    for uid in ("1.1", "1.2", "1.3"):
        one.receive(uid, uid, b"pixels", {})
    return one


@pytest.fixture
def predict(spool, tmp_path, monkeypatch):
    """Predicts until nothing waits; gives what was noted."""
    monkeypatch.setattr(predicting, "PAUSE", 0.001)
    monkeypatch.setattr("jaxpneumo.serve.retry.FIRST", 0.002)

    def predict(model):
        ending, events = threading.Event(), Events(tmp_path / "log")
        arguments = (spool, model, {"archive": ("sr",)}, events, ending)
        thread = threading.Thread(target=predicting.predict_waiting, args=arguments)
        thread.start()
        end = time.monotonic() + 20
        while spool.count(INCOMING) + spool.count(WORKING) and time.monotonic() < end:
            time.sleep(0.005)
        ending.set()
        thread.join()
        lines = [line for path in (tmp_path / "log").iterdir() for line in path.read_text().splitlines()]
        return [json.loads(line)["event"] for line in lines]

    return predict


def test_the_oldest_is_first(spool, predict):
    model = Model()
    assert predict(model) == ["predicted"] * 3
    assert model.seen == spool.listed(DONE) == ["1.1", "1.2", "1.3"]


def test_a_full_disk_lets_an_image_wait_and_others_try(spool, predict):
    full = OSError(28, "No space left on device")
    model = Model([full, full])
    assert predict(model) == ["failed", "failed", "predicted", "predicted", "predicted"]
    assert model.seen == ["1.1", "1.2", "1.3", "1.1", "1.2"]
    assert len(spool.listed(DONE)) == 3


def test_a_model_that_cannot_be_started_again_is_tried_until_it_can(spool, predict):
    crashed = LostError("crashed", crashed=True)
    model = Model([crashed], [InputError("the run is gone"), LostError("crashed"), None])
    assert predict(model)[:4] == ["model lost", "failed", "failed", "model started"]
    assert len(spool.listed(DONE)) == 3


def test_a_crash_is_tried_once_more_and_a_hang_is_not(spool, predict):
    crashed, hung = LostError("crashed", crashed=True), LostError("took too long")
    model = Model([crashed, crashed, hung, crashed, Verdict()])
    predict(model)
    assert model.seen == ["1.1", "1.1", "1.2", "1.3", "1.3"]
    assert (spool.listed(ASIDE), spool.listed(DONE)) == (["1.1", "1.2"], ["1.3"])


def make_on_device(device):
    """A model on a device that the first image breaks: it is there while the file is."""

    def look(image, into):
        device.unlink(missing_ok=True)
        raise RuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS")

    assert device.exists()
    return look


def test_a_lost_device_costs_no_image(spool, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpneumo.serve.retry.FIRST", 0.002)
    (tmp_path / "device").touch()
    model, events = ModelProcess(make_on_device, (tmp_path / "device",), spool.folder, 60), Events(tmp_path / "log")
    ending = threading.Event()
    model.start()
    thread = threading.Thread(target=predicting.predict_waiting, args=(spool, model, {}, events, ending))
    thread.start()
    end = time.monotonic() + 60
    while events.counts().get(("failed", ""), 0) < 2 and time.monotonic() < end:
        assert spool.count(ASIDE) == 0
        time.sleep(0.01)
    assert not model.ready, "so the listener's health is bad"
    ending.set()
    thread.join()
    assert spool.count(INCOMING) == 3
    assert events.counts()["model lost", ""] == 1
