"""Weights of other libraries: names and shapes of the published files, every difference in one error."""

import functools

import h5py
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxpneumo.errors import InputError
from jaxpneumo.model import pretrained
from jaxpneumo.model.unet import UNet


@functools.cache
def template(encoder: str, **kwargs):
    init = functools.partial(UNet(encoder, **kwargs).init, train=False)
    return jax.eval_shape(init, jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32))


def zeros_of(encoder: str, **kwargs):
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), template(encoder, **kwargs))


def keras_weights(part=None) -> dict[str, np.ndarray]:
    """Random weights under the Keras library's names, of the whole network or of its encoder."""
    rng = np.random.default_rng(0)
    return {
        pretrained.keras_name(path): rng.normal(size=value.shape).astype(np.float32)
        for (_, *path), value in flatten_dict(template("resnet34_preact")).items()
        if part in (None, path[0])
    }


def torchvision_weights() -> dict[str, np.ndarray]:
    """Random weights under torchvision's names, classifier and counters included, in PyTorch's layout."""
    rng = np.random.default_rng(0)
    weights = {}
    for (_, *path), value in flatten_dict(template("resnet34")).items():
        if path[0] == "encoder":
            shape = value.shape
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
            name = pretrained.torch_name(path).removeprefix("encoder.")
            weights[name] = rng.normal(size=shape).astype(np.float32)
    weights["bn1.num_batches_tracked"] = np.array(7)
    weights["fc.weight"], weights["fc.bias"] = np.zeros((1000, 512), np.float32), np.zeros(1000, np.float32)
    return weights


def write_h5(path, weights):
    """As Keras writes weights: a group a layer, the weight's whole name inside it again."""
    with h5py.File(path, "w") as file:
        for name, value in weights.items():
            file[f"{name.split('/')[0]}/{name}"] = value


def test_names_are_the_libraries_own():
    keras = set(keras_weights())
    assert {"bn_data/beta:0", "conv0/kernel:0", "stage4_unit1_sc/kernel:0", "bn1/moving_variance:0"} <= keras
    assert {"decoder_stage0a_conv/kernel:0", "decoder_stage4b_bn/gamma:0", "final_conv/bias:0"} <= keras
    assert "bn_data/gamma:0" not in keras
    torchvision = set(torchvision_weights())
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight"} <= torchvision
    assert {"layer3.5.bn2.bias", "layer4.0.downsample.1.running_mean"} <= torchvision


def test_keras_imagenet_file_fills_the_encoder_only(tmp_path):
    weights = keras_weights("encoder")
    path = tmp_path / "resnet34_imagenet_1000_no_top.h5"
    write_h5(path, weights)
    variables = pretrained.load(path, zeros_of("resnet34_preact"))
    np.testing.assert_array_equal(
        variables["params"]["encoder"]["stage2_unit1"]["shortcut"]["kernel"], weights["stage2_unit1_sc/kernel:0"]
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["encoder"]["bn_data"]["mean"], weights["bn_data/moving_mean:0"]
    )
    assert not np.any(variables["params"]["decoder"]["block0"]["conv1"]["kernel"])


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_torchvision_file_fills_the_encoder_only(tmp_path, ending):
    weights, path = torchvision_weights(), tmp_path / f"resnet34.{ending}"
    if ending == "pth":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed: .pth files cannot be read here")
        torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}, path)
    else:
        save_file(weights, path)
    variables = pretrained.load(path, zeros_of("resnet34"))
    kernel = variables["params"]["encoder"]["layer1_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, weights["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    assert not np.any(variables["params"]["segmentation_head"]["kernel"])


def test_whole_keras_network_fills_everything_but_the_input_convolution(tmp_path):
    path = tmp_path / "unet.h5"
    write_h5(path, keras_weights())
    variables = pretrained.load(path, zeros_of("resnet34_preact", input_convolution=True))
    filled = {path: np.any(value) for path, value in flatten_dict(variables).items()}
    assert {path[1] for path, any_weight in filled.items() if not any_weight} == {"input_convolution"}


def test_all_mismatches_come_in_one_error(tmp_path):
    weights = torchvision_weights()
    del weights["layer1.0.conv1.weight"]
    weights["bn1.weight"] = np.zeros(65, np.float32)
    weights["layer9.0.conv1.weight"] = np.zeros(1, np.float32)
    path = tmp_path / "resnet34.safetensors"
    save_file(weights, path)
    with pytest.raises(InputError) as error:
        pretrained.load(path, zeros_of("resnet34"))
    message = str(error.value)
    assert "missing encoder.layer1.0.conv1.weight" in message
    assert "encoder.bn1.weight has shape (65,), expected (64,)" in message
    assert "unexpected encoder.layer9.0.conv1.weight" in message
    assert "model.encoder" in message


def test_weights_of_the_other_network_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "resnet34.safetensors"
    save_file(torchvision_weights(), path)
    with pytest.raises(InputError, match=r"model\.encoder is the file's network"):
        pretrained.load(path, zeros_of("resnet34_preact"))


def test_unusable_files_are_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        pretrained.load(tmp_path / "absent.h5", {})
    with pytest.raises(InputError, match=r"must be a \.h5"):
        pretrained.load(tmp_path / "weights.onnx", {})
    for ending in ("h5", "safetensors"):
        broken = tmp_path / f"broken.{ending}"
        broken.write_bytes(b"not weights")
        with pytest.raises(InputError, match="cannot be read"):
            pretrained.load(broken, {})


def test_a_pickle_is_not_executed(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: .pth files cannot be read here")

    class Attack:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({"conv1.weight": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read"):
        pretrained.load(tmp_path / "evil.pth", {})
    assert not (tmp_path / "executed").exists()
