"""The deeper encoders are segmentation_models_pytorch's: golden values, weights under its names, and how they train.

tests/golden/make_smp.py writes the golden values. The weights that they belong to are drawn by ../shared.
"""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from networks import (
    AS_FOR_USERS,
    assert_close,
    compiled_apply,
    compiled_fold,
    drawn,
    elements,
    golden,
    outcome,
    summary,
    tiny,
    tiny_variables,
)
from safetensors.numpy import save_file

from jaxpneumo.model import pretrained
from jaxpneumo.model.bottleneck import SEModule
from jaxpneumo.model.convolution import Convolution, plain_convolve
from jaxpneumo.model.convolution_gradients import convolve_with_explicit_gradients
from jaxpneumo.model.depthwise import convolve_depthwise
from jaxpneumo.model.efficientnet import block_table
from jaxpneumo.model.pooling import pool_by_slices
from jaxpneumo.model.resnet import plain_pool
from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import ENCODERS, Parts, UNet
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Loss
from jaxpneumo.train.losses import segmentation_loss

GOLDEN = {
    "resnet50": "smp_resnet50_unet.npz",
    "se_resnext50_32x4d": "smp_se_resnext50_unet.npz",
    "efficientnet-b4": "smp_efficientnet_b4_unet.npz",
}
# As segmentation_models_pytorch and PyTorch count them: parameters, and with running statistics.
PARAMETERS = {
    "resnet50": (32_521_105, 32_576_209),
    "se_resnext50_32x4d": (34_523_969, 34_594_177),
    # 20,225,689 and 20,352,873 with a head of 806,400 weights and 3,584 statistics that the library never applies.
    "efficientnet-b4": (20_225_689 - 806_400, 20_352_873 - 806_400 - 3_584),
}
# A kernel inside the encoder, as the library and as we name it, and its classifier.
KERNELS = {
    "resnet50": ("layer1.0.conv2", ("layer1_0", "conv2")),
    "se_resnext50_32x4d": ("layer1.0.conv2", ("layer1_0", "conv2")),
    "efficientnet-b4": ("_blocks.31._depthwise_conv", ("blocks_31", "depthwise_conv")),
}
CLASSIFIERS = {
    "resnet50": ["fc.weight"],
    "se_resnext50_32x4d": ["last_linear.weight"],
    "efficientnet-b4": ["_conv_head.weight", "_bn1.weight", "_bn1.running_var", "_fc.bias"],
}
# Biases that the next blocks' 1x1 convolutions alone see; the BatchNorm behind those takes a shift away.
WITHOUT_GRADIENT = {
    "efficientnet-b4": {f"encoder._blocks.{block}._bn2.bias" for block in (1, *range(10, 16), *range(22, 30))}
}


def shapes_of(encoder, **kwargs):
    init = functools.partial(UNet(encoder, **kwargs).init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))


@pytest.fixture(scope="module", params=GOLDEN)
def case(request, shared):
    file = Path(__file__).parent / "golden" / GOLDEN[request.param]
    weights, reference, image, masks = golden(shared, file)
    named = drawn(reference["names"], weights.torch_kind, weights)
    return request.param, pretrained.from_torch(named, shapes_of(request.param)), reference, image, masks


def test_network_and_features_agree_with_smp_in_evaluation(case):
    encoder, variables, reference, image, _ = case
    assert_close(compiled_apply(UNet(encoder), variables, image), reference["eval_logits"], 1e-4)
    norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=ENCODERS[encoder].epsilon)
    module = ENCODERS[encoder].module(norm=norm, conv=Convolution)
    features = jax.jit(module.apply)({k: v["encoder"] for k, v in variables.items()}, image)
    for feature, values in zip(features, reference["features"], strict=True):
        assert_close(summary(feature), values, 1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
def test_training_agrees_with_smp(case):
    """Train logits, the norm of every gradient and the losses of three Adam(1e-3) steps.

    Adam's first steps turn the rounding of tiny gradients into whole steps, so the losses may drift apart a little.
    """
    encoder, variables, reference, image, masks = case
    # XLA's own kernel gradient of the grouped convolutions takes a minute.
    grouped = dict.fromkeys(("se_resnext50_32x4d", "efficientnet-b4"), convolve_with_explicit_gradients)
    model = UNet(encoder, parts=Parts(convolve=grouped.get(encoder, plain_convolve), pool=pool_by_slices))

    optimizer = optax.adam(1e-3)

    @functools.partial(jax.jit, compiler_options=AS_FOR_USERS)
    def step(params, batch_stats, opt_state):
        def loss_fn(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
            )
            loss, _ = segmentation_loss(logits, jnp.asarray(masks, jnp.float32), jnp.ones(len(image)), Loss("image"))
            return loss, (logits, new["batch_stats"])

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        norms = jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, grads))
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss, logits, norms

    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    losses = []
    for _ in reference["losses"]:
        state, loss, logits, norms = step(*state)
        if not losses:
            assert_close(logits, reference["train_logits"], 1e-4)
            by_name = {pretrained.torch_name(path): norm for path, norm in flatten_dict(norms).items()}
            ours = np.array([by_name[name] for name in reference["gradient_names"]])
            whole = np.linalg.norm(reference["gradient_norms"])
            none = reference["gradient_norms"] < 1e-12 * whole
            assert set(reference["gradient_names"][none]) == WITHOUT_GRADIENT.get(encoder, set())
            assert np.all(ours[none] < 1e-6 * whole)
            # Rounding decides which activations near zero pass their gradient on: single norms are up to 6e-3 off.
            np.testing.assert_allclose(ours[~none], reference["gradient_norms"][~none], rtol=2e-2)
            np.testing.assert_allclose(np.linalg.norm(ours), whole, rtol=2e-3)
        losses.append(float(loss))
    for ours, expected, relative in zip(losses, reference["losses"], (1e-5, 1e-3, 3e-3), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=relative)


@pytest.mark.parametrize("encoder", GOLDEN)
def test_network_has_the_published_number_of_parameters(encoder):
    shapes = shapes_of(encoder)
    assert (elements(shapes["params"]), elements(shapes)) == PARAMETERS[encoder]


@pytest.mark.long
@pytest.mark.parametrize(
    "change", [{"parts": rewrites_for("cpu", training=True)}, {"remat": True}], ids=["cpu", "remat"]
)
@pytest.mark.parametrize("encoder", GOLDEN)
def test_rewrites_and_remat_change_neither_logits_nor_gradients_nor_statistics(encoder, change):
    """Leaf by leaf to 1e-11 in float64."""
    plain, changed = outcome(encoder, "float64"), outcome(encoder, "float64", **change)
    assert jax.tree.structure(plain) == jax.tree.structure(changed)
    for ours, reference in zip(*map(jax.tree.leaves, (changed, plain)), strict=True):
        assert np.abs(ours - reference).max() <= 1e-11 * max(1e-3, np.abs(reference).max())


@pytest.mark.parametrize("encoder", GOLDEN)
def test_folded_network_predicts_the_same_without_any_statistics(encoder):
    model = tiny(encoder=encoder, parts=rewrites_for("cpu", training=False))
    image = np.random.Generator(np.random.PCG64(7)).random((2, 64, 64, 1), np.float32)
    variables = tiny_variables(model)
    folded = compiled_fold(variables, encoder, jnp.float32)
    assert not jax.tree.leaves(folded["batch_stats"])
    assert_close(compiled_apply(model, folded, image), compiled_apply(model, variables, image), 1e-4)


@pytest.mark.long
@pytest.mark.parametrize("encoder", GOLDEN)
def test_one_step_in_bfloat16_changes_every_parameter(encoder):
    model = tiny(encoder=encoder, dtype=jnp.bfloat16, parts=rewrites_for("cpu", training=True))
    image = jax.random.uniform(jax.random.key(0), (4, 64, 64, 1))
    variables = tiny_variables(model)
    masks = (image[..., 0] > 0.5).astype(jnp.float32)

    @jax.jit
    def step(params):
        def loss_fn(params):
            logits, _ = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return segmentation_loss(logits, masks, jnp.ones(4), Loss("image"))[0]

        return jax.tree.map(lambda value, gradient: value - 0.1 * gradient, params, jax.grad(loss_fn)(params))

    params = variables["params"]
    after = flatten_dict(step(params))
    unchanged = [path for path, value in flatten_dict(params).items() if np.array_equal(value, after[path])]
    assert not unchanged
    assert all(np.isfinite(value).all() for value in after.values())


def test_grouped_convolution_and_its_gradients_are_those_of_each_group_alone():
    rng = np.random.Generator(np.random.PCG64(4))
    with jax.enable_x64(True):
        for channels, features, groups, stride in ((12, 24, 3, 1), (320, 640, 32, 2), (6, 6, 6, 1)):
            x = rng.standard_normal((2, 6, 4, channels))
            kernel = rng.standard_normal((3, 3, channels // groups, features))

            def alone(x, kernel, groups=groups, stride=stride):
                parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
                return jnp.concatenate([plain_convolve(*part, stride, 1) for part in parts], -1)

            @functools.partial(jax.jit, static_argnums=0)
            def outcome_of(convolve, x, kernel, cotangent):
                result, back = jax.vjp(convolve, x, kernel)
                return result, *back(cotangent)

            cotangent = rng.standard_normal(jax.eval_shape(alone, x, kernel).shape)
            expected = outcome_of(alone, x, kernel, cotangent)
            for convolve in (plain_convolve, convolve_with_explicit_gradients):
                ours = outcome_of(functools.partial(convolve, stride=stride, padding=1), x, kernel, cotangent)
                for mine, reference in zip(ours, expected, strict=True):
                    np.testing.assert_allclose(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "stride", "edges", "shape"),
    [
        (3, 1, None, (2, 6, 4)),
        (5, 1, None, (1, 2, 3)),  # wider than the map
        (3, 2, (0, 1), (2, 8, 6)),
        (5, 2, (2, 2), (3, 8, 4)),  # the last row of zeros is not met
        (5, 2, (1, 2), (2, 6, 10)),
    ],
)
def test_depthwise_convolution_and_its_gradients_are_xlas(size, stride, edges, shape):
    rng = np.random.Generator(np.random.PCG64(4))
    with jax.enable_x64(True):
        x, kernel = rng.standard_normal((*shape, 6)), rng.standard_normal((size, size, 1, 6))

        def outcome_of(convolve):
            module = Convolution(6, size, stride, groups=6, edges=edges, dtype=jnp.float64, convolve=convolve)
            result, back = jax.vjp(lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x), x, kernel)
            return result, *back(np.random.Generator(np.random.PCG64(5)).standard_normal(result.shape))

        ours, expected = outcome_of(convolve_with_explicit_gradients), outcome_of(plain_convolve)
        assert ours[0].shape == (shape[0], shape[1] // stride, shape[2] // stride, 6)
        for mine, reference in zip(ours, expected, strict=True):
            np.testing.assert_allclose(mine, reference, rtol=1e-12, atol=1e-12)


def test_depthwise_sums_are_in_float32():
    """Of bfloat16 the sum of 256 and eight ones would stay at 256, as 257 is none of its numbers."""
    x = jnp.ones((1, 3, 3, 2), jnp.bfloat16).at[0, 0, 0].set(256)
    assert convolve_depthwise(x, jnp.ones((3, 3, 1, 2), jnp.bfloat16), 1, 0).astype(jnp.float32).tolist() == [
        [[[264] * 2]]
    ]


def test_the_table_of_efficientnet_is_that_of_b4():
    """32 blocks, features behind those that the library names; its padding is that of images of 380 pixels."""
    made = block_table((3, 4, 6, 3), 64)
    blocks = [block for level in made.levels for block in level]
    assert list(np.cumsum([len(level) for level in made.levels]) - 1) == [5, 9, 21, 31]
    assert [made.stem_features, *(level[-1].features for level in made.levels)] == [48, 32, 56, 160, 448]
    assert sum(not block.residual for block in blocks) == 7
    assert made.stem_edges == (0, 1)
    # By hand: 190 pixels become 95, these 48, these 24, these 12.
    strided = [(block.size, block.edges) for block in blocks if block.stride == 2]
    assert strided == [(3, (0, 1)), (5, (2, 2)), (3, (0, 1)), (5, (1, 2))]
    assert {(block.size, block.edges) for block in blocks if block.stride == 1} == {(3, (1, 1)), (5, (2, 2))}
    tiny_one = block_table((1, 1, 1, 1), 4)
    assert [len(level) for level in tiny_one.levels] == [2, 1, 2, 3]
    assert min(block.features for level in tiny_one.levels for block in level) == 1


@pytest.mark.parametrize(("chosen", "expected"), [(None, (0.99, 0.9)), (0.5, (0.5, 0.5))])
def test_encoder_and_decoder_have_their_librarys_momenta(chosen, expected):
    """From statistics of zero, an update leaves (1 - momentum) times the batch's own, which momentum 0 shows."""
    image = np.random.Generator(np.random.PCG64(7)).random((2, 32, 32, 1), np.float32)
    model = tiny(encoder="efficientnet-b4", momentum=chosen)
    variables = tiny_variables(model)
    variables["batch_stats"] = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    apply = jax.jit(
        lambda model: model.apply(variables, image, train=True, mutable=["batch_stats"])[1]["batch_stats"],
        static_argnums=0,
    )
    updated, own = apply(model), apply(model.clone(momentum=0.0))
    for part, momentum in zip(("encoder", "decoder"), expected, strict=True):
        for mine, reference in zip(*map(jax.tree.leaves, (updated[part], own[part])), strict=True):
            np.testing.assert_allclose(mine, (1 - momentum) * reference, rtol=1e-4, atol=1e-6)


def test_pooling_without_padding_before_cuts_the_last_window_off():
    """Worked by hand on a row of eight: windows 0-2, 2-4, 4-6 and 6-7."""
    row = jnp.array([5.0, 0, 1, 3, 2, 0, 0, 4])
    x = jnp.tile(row[None, None, :, None], (1, 8, 1, 1))
    for pool in (plain_pool, pool_by_slices):
        np.testing.assert_array_equal(pool(x, 0)[0, :, :, 0], [[5, 3, 2, 4]] * 4)


def test_squeeze_and_excitation_weighs_channels_by_their_means():
    """By hand: means 1 and 2 give the hidden 1 * 1 + 2 * 3 - 4 = 3, and the weights sigmoid(3) and sigmoid(-3 + 1)."""
    x = jnp.stack([jnp.array([[0.0, 2], [1, 1]]), jnp.array([[4.0, 0], [2, 2]])], -1)[None]
    first = {"kernel": jnp.array([1.0, 3]).reshape(1, 1, 2, 1), "bias": jnp.array([-4.0])}
    second = {"kernel": jnp.array([1.0, -1]).reshape(1, 1, 1, 2), "bias": jnp.array([0.0, 1])}
    y = SEModule(2, Convolution).apply({"params": {"fc1": first, "fc2": second}}, x)
    np.testing.assert_allclose(y, x / (1 + np.exp([-3.0, 2.0])), rtol=1e-6)


def torch_weights(encoder):
    """Random weights of a narrow network under PyTorch's names, in its layout."""
    rng = np.random.default_rng(1)
    weights = {}
    for (_, *path), value in flatten_dict(shapes_of(encoder, width=8)).items():
        shape = value.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        weights[pretrained.torch_name(tuple(path))] = np.abs(rng.normal(size=shape)).astype(np.float32)
    return weights


def loaded(path, encoder, weights):
    save_file(weights, path)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes_of(encoder, width=8))
    return pretrained.load(path, zeros)["params"]


def test_names_are_the_libraries_own():
    assert {
        "encoder.conv1.weight",
        "encoder.layer1.0.downsample.0.weight",
        "encoder.layer4.2.conv3.weight",
        "encoder.layer3.5.bn3.running_var",
        "decoder.blocks.0.conv1.0.weight",
    } <= set(torch_weights("resnet50"))
    senet = set(torch_weights("se_resnext50_32x4d"))
    assert {
        "encoder.layer0.conv1.weight",
        "encoder.layer0.bn1.running_mean",
        "encoder.layer1.2.se_module.fc1.bias",
        "encoder.layer4.0.se_module.fc2.weight",
        "encoder.layer2.0.downsample.1.weight",
    } <= senet
    assert "encoder.conv1.weight" not in senet
    assert {
        "encoder._conv_stem.weight",
        "encoder._bn0.running_var",
        "encoder._blocks.0._depthwise_conv.weight",
        "encoder._blocks.2._expand_conv.weight",
        "encoder._blocks.31._se_reduce.bias",
        "encoder._blocks.31._bn2.weight",
    } <= set(torch_weights("efficientnet-b4"))


@pytest.mark.parametrize("prefix", ["encoder.", "", "module.model.encoder."])
@pytest.mark.parametrize("encoder", GOLDEN)
def test_an_encoders_file_fills_the_encoder_under_any_prefix(tmp_path, encoder, prefix):
    whole = torch_weights(encoder)
    weights = {
        prefix + name.removeprefix("encoder."): value for name, value in whole.items() if name.startswith("encoder.")
    }
    weights |= {f"{prefix}{name}": np.zeros((10, 256), np.float32) for name in CLASSIFIERS[encoder]}
    weights[f"{prefix}bn1.num_batches_tracked"] = np.array(3)
    params = loaded(tmp_path / "weights.safetensors", encoder, weights)
    theirs, (block, convolution) = KERNELS[encoder]
    kernel = whole[f"encoder.{theirs}.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["encoder"][block][convolution]["kernel"], kernel)
    assert not np.any(params["segmentation_head"]["kernel"])


@pytest.mark.parametrize("encoder", GOLDEN)
def test_a_whole_unet_of_smp_fills_everything_and_no_other_network(tmp_path, encoder):
    weights, path = torch_weights(encoder), tmp_path / "unet.safetensors"
    params = loaded(path, encoder, {f"model.{name}": value for name, value in weights.items()})
    assert all(np.any(leaf) for leaf in jax.tree.leaves(params))
    for other in set(GOLDEN) - {encoder}:
        with pytest.raises(InputError, match=r"model\.encoder is the file's network"):
            loaded(path, other, weights)
