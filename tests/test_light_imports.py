"""What a command does not need, it does not load."""

import pytest
from commands import run

# What trains: records, augmentation by the host, the optimizer, scalars for TensorBoard.
OF_TRAINING = ("grain", "albumentations", "optax", "tensorboardX")


@pytest.mark.parametrize("module", ["predict.infer", "predict.ensemble", "evaluate.evaluate", "run.clean"])
def test_prediction_stands_on_no_training(module):
    loaded = run("-c", f"import sys, jaxpneumo.{module}; print(*sys.modules)").stdout.split()
    assert f"jaxpneumo.{module}" in loaded
    assert not [name for name in loaded if name in OF_TRAINING or name.startswith("jaxpneumo.train")]


def test_training_loads_the_hosts_augmentation_only_where_it_is_chosen():
    loaded = run("-c", "import sys, jaxpneumo.train.stages; print(*sys.modules)").stdout.split()
    assert {"grain", "optax"} <= set(loaded)
    assert "albumentations" not in loaded
