"""Weights of other libraries: names and shapes of the published files, prefixes, and what is refused, in few lines."""

import functools
import logging

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxpneumo.model import pretrained
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.errors import InputError


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
        pretrained.keras_name(path): np.abs(rng.normal(size=value.shape)).astype(np.float32)
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
            weights[name] = np.abs(rng.normal(size=shape)).astype(np.float32)
    weights["bn1.num_batches_tracked"] = np.array(7)
    weights["fc.weight"], weights["fc.bias"] = np.zeros((1000, 512), np.float32), np.zeros(1000, np.float32)
    return weights


def smp_weights() -> dict[str, np.ndarray]:
    """Random weights under segmentation_models_pytorch's names, in PyTorch's layout; the network has width 8."""
    rng = np.random.default_rng(1)
    weights = {}
    for (_, *path), value in flatten_dict(template("resnet34", width=8)).items():
        shape = value.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        weights[pretrained.torch_name(path)] = np.abs(rng.normal(size=shape)).astype(np.float32)
    return weights


def load(path, weights=None):
    """A file, of `weights` if they are given, read into the network of `smp_weights`."""
    if weights is not None:
        save_file(weights, path)
    return pretrained.load(path, zeros_of("resnet34", width=8))["params"]


def same_as(weights, params) -> bool:
    """Whether encoder, decoder and head are the file's."""
    pairs = {
        "encoder.layer2.0.conv1": params["encoder"]["layer2_0"]["conv1"],
        "decoder.blocks.3.conv2.0": params["decoder"]["block3"]["conv2"],
        "segmentation_head.0": params["segmentation_head"],
    }
    return all(
        np.array_equal(ours["kernel"], weights[f"{name}.weight"].transpose(2, 3, 1, 0)) for name, ours in pairs.items()
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


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


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "state_dict.", "module.model.", "_orig_mod."])
def test_a_prefix_of_a_training_program_is_taken_off(path, prefix):
    weights = smp_weights()
    assert same_as(weights, load(path, {prefix + name: value for name, value in weights.items()}))


def test_weights_beside_those_of_the_network_are_left_out_with_a_word(path, caplog):
    caplog.set_level(logging.INFO)
    weights = smp_weights()
    head = {f"classification_head.3.{leaf}": np.ones(1, np.float32) for leaf in ("weight", "bias")}
    assert same_as(weights, load(path, weights | head))
    assert "classifier is left out: classification_head.3.bias, classification_head.3.weight" in caplog.text
    caplog.clear()
    lightning = {f"model.{name}": value for name, value in weights.items()} | {"std": np.ones(3, np.float32)}
    assert same_as(weights, load(path, lightning))
    assert "1 weights of the file are not below 'model.' and left out: std" in caplog.text


@pytest.mark.parametrize("prefix", ["encoder.", "", "module.encoder.", "backbone."])
def test_an_encoder_alone_leaves_the_decoder_as_it_is(path, prefix, caplog):
    caplog.set_level(logging.INFO)
    weights = {name: value for name, value in smp_weights().items() if name.startswith("encoder.")}
    params = load(path, {prefix + name.removeprefix("encoder."): value for name, value in weights.items()})
    kernel = weights["encoder.layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["encoder"]["layer2_0"]["conv1"]["kernel"], kernel)
    assert not np.any(params["decoder"]["block3"]["conv2"]["kernel"])
    assert "holds an encoder's weights; the decoder begins untrained" in caplog.text


def test_an_encoder_with_half_a_decoder_is_refused(path):
    weights = {name: value for name, value in smp_weights().items() if not name.startswith("decoder.blocks.0")}
    with pytest.raises(InputError, match=r"missing decoder\.blocks\.0"):
        load(path, weights)


def test_two_networks_in_one_file_are_refused(path):
    weights = smp_weights()
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in weights.items()}
    with pytest.raises(InputError, match=r"2 residual networks, below 'student\.encoder\.', 'teacher\.encoder\.'"):
        load(path, both)


def test_hundreds_of_differences_take_few_lines(path):
    """All names, all shapes, or both are others: the message counts them and names the first."""
    weights = smp_weights()
    other_shapes = {name: np.concatenate([value, value]) for name, value in weights.items()}
    other_names = {f"{name}_x": value for name, value in weights.items()}
    for file in (other_shapes, other_names, {**other_shapes, **other_names}):
        with pytest.raises(InputError, match=r" and \d+ more") as error:
            load(path, file)
        assert len(str(error.value).splitlines()) <= 12
    with pytest.raises(InputError, match=f"{len(weights)} differences from its {len(weights)} weights"):
        load(path, other_shapes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_by_name(path, value):
    weights = smp_weights()
    weights["decoder.blocks.2.conv1.0.weight"][1, 2, 0, 1] = value
    with pytest.raises(InputError, match=r"decoder\.blocks\.2\.conv1\.0\.weight holds values that are not a number"):
        load(path, weights)


def test_negative_variances_are_refused_by_name(path):
    weights = smp_weights()
    weights["encoder.bn1.running_var"][3] = -0.1
    with pytest.raises(InputError, match=r"encoder\.bn1\.running_var is a variance below 0"):
        load(path, weights)


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16, np.float64])
def test_other_floating_point_types_are_converted(path, kind):
    weights = smp_weights()
    params = load(path, {name: value.astype(kind) for name, value in weights.items()})
    assert params["segmentation_head"]["kernel"].dtype == np.float32
    expected = weights["segmentation_head.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params["segmentation_head"]["kernel"], expected, rtol=2**-8)


def test_whole_numbers_and_values_too_large_for_float32_are_refused(path):
    weights = smp_weights()
    with pytest.raises(InputError, match=r"encoder\.conv1\.weight is of type int8"):
        load(path, weights | {"encoder.conv1.weight": weights["encoder.conv1.weight"].astype(np.int8)})
    with pytest.raises(InputError, match=r"encoder\.conv1\.weight holds values that are not a number \(NaN\) or inf"):
        load(path, weights | {"encoder.conv1.weight": weights["encoder.conv1.weight"].astype(float) * 1e300})


def test_files_of_keras_3(tmp_path):
    """Its own two formats do not name the layers; its legacy format has the names, without ':0'."""
    (tmp_path / "model.keras").write_bytes(b"PK")
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 8, 8), np.float32)
    for name in ("model.keras", "model.weights.h5"):
        with pytest.raises(InputError, match=r'Keras 3.*model\.save\("model\.h5"\)'):
            pretrained.load(tmp_path / name, {})
    weights = keras_weights()
    write_h5(tmp_path / "legacy.h5", {name.removesuffix(":0"): value for name, value in weights.items()})
    variables = pretrained.load(tmp_path / "legacy.h5", zeros_of("resnet34_preact"))
    np.testing.assert_array_equal(variables["params"]["segmentation_head"]["kernel"], weights["final_conv/kernel:0"])


def test_a_keras_model_inside_a_model_is_refused(tmp_path):
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        for layer in ("conv0", "stage1_unit1_conv1"):
            file[f"model_1/{layer}/kernel:0"] = np.zeros((3, 3, 8, 8), np.float32)
    with pytest.raises(InputError, match="the layer model_1 is a model of its own"):
        pretrained.load(tmp_path / "nested.h5", {})


def test_keras_weights_with_their_classifier_fill_the_encoder(tmp_path):
    weights = keras_weights("encoder") | {"fc1/kernel:0": np.ones((512, 1000), np.float32)}
    write_h5(tmp_path / "resnet34_imagenet_1000.h5", weights)
    variables = pretrained.load(tmp_path / "resnet34_imagenet_1000.h5", zeros_of("resnet34_preact"))
    np.testing.assert_array_equal(variables["params"]["encoder"]["conv0"]["kernel"], weights["conv0/kernel:0"])


def test_files_cut_short_are_refused_in_words(tmp_path, path):
    save_file(smp_weights(), path)
    write_h5(tmp_path / "weights.h5", keras_weights("encoder"))
    for whole in (path, tmp_path / "weights.h5"):
        content = whole.read_bytes()
        for length in (0, 7, 1000, len(content) // 2, len(content) - 1):
            whole.write_bytes(content[:length])
            with pytest.raises(InputError, match=r"cannot be read as .* (copy|download) it again") as error:
                load(whole)
            assert len(str(error.value).splitlines()) == 1


def test_a_folder_and_an_empty_file_of_weights_are_refused(tmp_path, path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path / "folder.pth")
    with pytest.raises(InputError, match="holds no weights"):
        load(path, {})


def test_pytorch_files_with_more_than_weights(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: .pth files cannot be read here")
    weights = smp_weights()
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in weights.items()}
    path = tmp_path / "checkpoint.pth"
    for content in (
        tensors,
        {"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}, "param_groups": []}},
        {"model": tensors, "best": 0.8},
        {name: value.to(torch.bfloat16) for name, value in tensors.items()},
    ):
        torch.save(content, path)
        params = load(path)
        expected = weights["segmentation_head.0.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_allclose(params["segmentation_head"]["kernel"], expected, rtol=2**-8)
    torch.save({"epoch": 3, "ema": {"decay": 0.9}}, path)
    with pytest.raises(InputError, match=r"holds no weights by name.* Its entries are epoch, ema"):
        load(path)
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(InputError, match=r"more than arrays.*torch\.save\(model\.state_dict\(\), FILE\)"):
        load(path)
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as"):
        load(path)
