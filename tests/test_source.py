"""Batches: order, shares, restoring, workers, padding."""

import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from jaxpneumo.augment import host
from jaxpneumo.data import dataset, source
from jaxpneumo.process.errors import InputError

COUNT, SIZE = 23, 32

# Grain reads absl flags when it starts worker processes; pytest never parses them.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What a prepared data set of 23 images of 32 px has for batches; an image's first pixel is its row."""
    directory = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, SIZE, SIZE), np.uint8)
    images[:, 0, 0] = np.arange(COUNT)
    masks = rng.integers(0, 2, (COUNT, SIZE, SIZE), np.uint8)
    np.save(directory / f"images_{SIZE}.npy", images)
    np.save(directory / f"masks_{SIZE}.npy", np.packbits(masks, axis=-1))
    dataset.write_info(directory, (SIZE,), COUNT, COUNT, 0, synthetic=True, made_from={})
    return directory


@pytest.fixture
def batches(prepared):
    """`train_batches` on the test data, its iterators closed afterwards."""
    opened = []

    def open_batches(rows=range(COUNT), batch_size=4, seed=1, **options):
        opened.append(source.train_batches(prepared, SIZE, np.array(rows), batch_size, seed, **options))
        return opened[-1]

    yield open_batches
    for iterator in opened:
        iterator.close()


def everything():
    return host.make_augment(flip=0.5, intensity=0.5, distortion=0.5, crop=0.5, size=SIZE)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def rows_of(taken):
    return np.concatenate([batch["image"][:, 0, 0] for batch in taken])


def assert_same(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def test_a_training_batch_holds_the_stored_records(prepared, batches):
    batch = next(batches())
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (4, SIZE, SIZE)),
        "mask": (np.uint8, (4, SIZE, SIZE // 8)),
        "weight": (np.float32, (4,)),
    }
    rows = batch["image"][:, 0, 0]
    images, masks = dataset.open_arrays(prepared, SIZE)
    np.testing.assert_array_equal(batch["image"], images[rows])
    np.testing.assert_array_equal(batch["mask"], masks[rows])
    np.testing.assert_array_equal(batch["weight"], 1)


def test_each_epoch_holds_each_row_once_in_a_new_order(batches):
    chosen = np.array([2, 3, 5, 7, 11, 13, 17, 19])
    epochs = rows_of(take(batches(rows=chosen), 6)).reshape(3, 8)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(chosen, (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert np.any(epochs[0] != chosen)


def test_the_seed_decides(batches):
    augmented = take(batches(augment=everything()), 6)
    assert_same(augmented, take(batches(augment=everything()), 6))
    assert np.any(rows_of(take(batches(seed=2), 6)) != rows_of(take(batches(seed=1), 6)))


def test_augmentation_leaves_the_order_alone_and_is_new_each_epoch(batches):
    plain, augmented = batches(rows=[4], batch_size=1), batches(rows=[4], batch_size=1, augment=everything())
    assert len({batch["image"].tobytes() for batch in take(plain, 12)}) == 1
    assert len({batch["image"].tobytes() for batch in take(augmented, 12)}) > 6
    first = partial(marked, everything())
    np.testing.assert_array_equal(rows_of(take(batches(augment=first), 6)), rows_of(take(batches(), 6)))


def marked(augment, image, mask, rng):
    """Augments, and writes the row back into the first pixel."""
    augmented, mask = augment(image, mask, rng)
    augmented = augmented.copy()
    augmented[0, 0] = image[0, 0]
    return augmented, mask


def test_a_start_in_the_middle_of_an_epoch_gives_the_same_batches(batches):
    expected = take(batches(augment=everything()), 8)[3:]
    assert_same(take(batches(augment=everything(), start=3), 5), expected)


def test_the_shares_of_two_processes_make_up_the_batches_of_one_in_its_order(batches):
    whole = take(batches(augment=everything()), 8)
    for start in (0, 5):
        parts = [take(batches(augment=everything(), process_index=i, process_count=2, start=start), 3) for i in (0, 1)]
        for batch, left, right in zip(whole[start:], *parts, strict=False):
            for key in batch:
                np.testing.assert_array_equal(batch[key], np.concatenate([left[key], right[key]]))


@pytest.mark.parametrize(("start", "process"), [(0, (0, 1)), (7, (1, 2))])
def test_index_batches_are_the_order_of_the_batches(batches, start, process):
    rows = np.array([20, 3, 7, 8, 9, 1, 0, 22, 15])
    indices = source.index_batches(len(rows), 4, 1, *process, start)
    taken = take(indices, 9)
    indices.close()
    assert taken[0]["index"].dtype == np.int32
    options = {"process_index": process[0], "process_count": process[1], "start": start}
    streamed = rows_of(take(batches(rows=rows, augment=partial(marked, everything()), **options), 9))
    np.testing.assert_array_equal(rows[np.concatenate([batch["index"] for batch in taken])], streamed)


def platform_in_corner(augment, image, mask, rng):
    """Augments, and writes into the corner whether this process may touch nothing but the CPU."""
    image, mask = augment(image, mask, rng)
    image = image.copy()
    image[-1, -1] = jax.config.jax_platforms == "cpu" and jax.default_backend() == "cpu"
    return image, mask


@pytest.mark.long
def test_two_workers_give_the_batches_of_none_from_any_start(batches):
    augment = partial(platform_in_corner, everything())
    expected = take(batches(augment=augment), 7)
    working = batches(augment=augment, workers=2)
    got = take(working, 7)
    for batch in got:
        np.testing.assert_array_equal(batch["image"][:, -1, -1], 1)
        batch["image"][:, -1, -1] = 0
    for batch in expected:
        batch["image"][:, -1, -1] = 0
    assert_same(got, expected)
    again = take(batches(augment=augment, workers=2, start=3), 2)
    np.testing.assert_array_equal([batch["mask"] for batch in again], [batch["mask"] for batch in expected[3:5]])


def test_workers_outlive_sigterm_but_not_their_process(prepared):
    """Batch systems signal all processes of a job: the one that trains still needs its workers to end in order."""
    code = f"""
import multiprocessing, os, signal, sys, time
import numpy as np
from absl import flags
from jaxpneumo.data import source
flags.FLAGS.mark_as_parsed()
batches = source.train_batches({str(prepared)!r}, {SIZE}, np.arange({COUNT}), 4, 0, workers=1)
next(batches)
(worker,) = multiprocessing.active_children()
os.kill(worker.pid, signal.SIGTERM)
time.sleep(0.5)
assert worker.is_alive()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    deadline = time.monotonic() + 60
    while Path(f"/proc/{int(process.stdout)}/cmdline").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_source_is_pickled_as_its_arguments(prepared):
    original = source.PreparedSource(prepared, SIZE, np.arange(5))
    data = pickle.dumps(original)
    assert len(data) < 1000 < original[0]["image"].nbytes * COUNT
    copy = pickle.loads(data)
    assert len(copy) == 5
    assert_same([copy[i] for i in range(5)], [original[i] for i in range(5)])


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_covers_each_row_once_and_marks_the_padding(prepared, process_count):
    rows = np.array([20, 3, 7, 8, 9, 1, 0, 22, 15])
    images, masks = dataset.open_arrays(prepared, SIZE)
    seen = []
    for i in range(process_count):
        taken = list(source.eval_batches(prepared, SIZE, rows, 4, i, process_count))
        assert [batch["image"].shape for batch in taken] == [(4 // process_count, SIZE, SIZE)] * 3
        for batch in taken:
            real = batch["row"] >= 0
            assert (batch["row"].dtype, batch["weight"].dtype) == (np.int32, np.float32)
            np.testing.assert_array_equal(batch["weight"], real)
            np.testing.assert_array_equal(batch["image"][real], images[batch["row"][real]])
            np.testing.assert_array_equal(batch["mask"][real], masks[batch["row"][real]])
            assert not batch["image"][~real].any()
            assert not batch["mask"][~real].any()
            seen.append(batch["row"][real])
    assert sorted(np.concatenate(seen)) == sorted(rows)
    if process_count == 1:
        np.testing.assert_array_equal(np.concatenate(seen), rows)


def test_evaluation_of_no_rows_gives_no_batches(prepared):
    assert list(source.eval_batches(prepared, SIZE, np.array([], int), 4)) == []


def test_wrong_use_is_refused_in_words(prepared, batches):
    with pytest.raises(InputError, match="no training images"):
        batches(rows=[])
    with pytest.raises(InputError, match="multiple of 3"):
        batches(batch_size=4, process_count=3)
    with pytest.raises(InputError, match="has 23 images, but rows 0 to 23"):
        batches(rows=range(24))
    with pytest.raises(InputError, match="no arrays of size 64"):
        source.train_batches(prepared, 64, np.arange(5), 4, seed=0)
    with pytest.raises(InputError, match="multiple of 3"):
        source.eval_batches(prepared, SIZE, np.arange(5), 4, process_count=3)
