"""The network is the papers' and smp's: golden values of the reference libraries, sizes, types, gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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

from jaxpneumo.model import pretrained
from jaxpneumo.model.batch_norm import ExplicitNorm
from jaxpneumo.model.convolution import Convolution, plain_convolve
from jaxpneumo.model.convolution_gradients import convolve_with_explicit_gradients
from jaxpneumo.model.packed import pack, packed_decoder_end, parted_upsample, unpack
from jaxpneumo.model.pooling import pool_by_slices, pool_with_taps
from jaxpneumo.model.resnet import PreactivationResNet, ResNet, plain_pool
from jaxpneumo.model.rewrites import folded_upsample, rewrites_for
from jaxpneumo.model.stem import grey_stem, packed_grey_stem
from jaxpneumo.model.unet import Parts, UNet
from jaxpneumo.run.config import Loss
from jaxpneumo.train.losses import segmentation_loss

PREACT_EVAL = (-0.692736, 0.344581, 3.30675)
PREACT_TRAIN = (0.0310207, 1.16741, 7.30601)
RESNET_EVAL = (0.149134, 0.303379, 2.08029)
RESNET_TRAIN = (0.919781, 1.2443, 7.61032)


@pytest.fixture(scope="module")
def keras_case(shared):
    weights, reference, image, masks = golden(shared, shared / "golden" / "keras_resnet34_unet.npz")
    variables = pretrained.from_keras(drawn(reference["names"], weights.keras_kind, weights))
    return variables, reference, image, masks


@pytest.fixture(scope="module")
def torch_case(shared):
    weights, reference, image, masks = golden(shared, shared / "golden" / "smp_resnet34_unet.npz")
    variables = pretrained.from_torch(drawn(reference["keys"], weights.torch_kind, weights))
    return variables, reference, image, masks


def test_preactivation_network_agrees_with_keras(keras_case):
    variables, reference, image, _ = keras_case
    model = UNet("resnet34_preact")
    assert elements(variables["params"]) == reference["n_trainable"] == 24_438_804
    assert elements(variables) == reference["n_total"] == 24_456_154
    assert_close(compiled_apply(model, variables, image), reference["eval_logits"])
    logits, _ = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, image)
    assert_close(logits, reference["train_logits"])


def test_preactivation_features_agree_with_keras(keras_case):
    variables, reference, image, _ = keras_case
    norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=2e-5)
    encoder = PreactivationResNet(norm=norm, conv=Convolution)
    features = jax.jit(encoder.apply)({k: v["encoder"] for k, v in variables.items()}, image)
    names = ("relu0", "stage2_unit1_relu1", "stage3_unit1_relu1", "stage4_unit1_relu1", "relu1")
    for name, feature in zip(names, features, strict=True):
        assert_close(summary(feature), reference[f"eval_feature/{name}"])


def test_network_and_features_agree_with_smp(torch_case):
    variables, reference, image, _ = torch_case
    assert elements(variables["params"]) == reference["n_params"] == 24_436_369
    assert_close(compiled_apply(UNet("resnet34"), variables, image), reference["eval_logits"])
    norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)
    encoder = ResNet(norm=norm, conv=Convolution)
    features = jax.jit(encoder.apply)({k: v["encoder"] for k, v in variables.items()}, image)
    for i, feature in enumerate(features, start=1):
        assert_close(summary(feature), reference[f"eval_feature{i}"])


@pytest.mark.long
@pytest.mark.usefixtures("compiled_as_for_users")
def test_training_agrees_with_smp(torch_case):
    """Train logits, running statistics, gradient norms and the losses of four Adam(1e-3) steps."""
    variables, reference, image, masks = torch_case
    # Adam magnifies what rounding leaves of small gradients: with a pooling that rounds otherwise the fourth loss is
    # 2e-3 off.
    model = UNet("resnet34", parts=rewrites_for("gpu", training=True))
    weight = jnp.ones(len(image))

    @functools.partial(jax.jit, compiler_options=AS_FOR_USERS)
    def gradients(params, batch_stats):
        def loss_fn(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
            )
            loss, parts = segmentation_loss(logits, jnp.asarray(masks, jnp.float32), weight, Loss("image"))
            return loss, (parts, logits, new["batch_stats"])

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    optimizer = optax.adam(1e-3)

    @functools.partial(jax.jit, compiler_options=AS_FOR_USERS)
    def update(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, params))
    losses, parts_seen = [], []
    for step in range(4):
        (loss, (parts, logits, batch_stats)), grads = gradients(params, batch_stats)
        if step == 0:
            assert_close(logits, reference["train_logits"])
            statistics = batch_stats["encoder"]["bn1"]
            assert_close(statistics["mean"], reference["running_mean/encoder.bn1"])
            # PyTorch's running variance takes the unbiased batch variance, linen's the biased one.
            count = image.shape[0] * (image.shape[1] // 2) ** 2
            old = variables["batch_stats"]["encoder"]["bn1"]["var"]
            unbiased = 0.9 * old + (statistics["var"] - 0.9 * old) * count / (count - 1)
            assert_close(unbiased, reference["running_var/encoder.bn1"])
            by_name = {
                pretrained.torch_name(tuple(k.key for k in path)): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
            }
            checked = [name for name in reference.files if name.startswith("gradnorm/")]
            assert len(checked) == 7
            for name in checked:
                norm = np.linalg.norm(np.asarray(by_name[name.removeprefix("gradnorm/")]).ravel())
                # In float64 the reference's own float32 norms turn out to be off by up to 5e-4, ours by 3e-4.
                np.testing.assert_allclose(norm, reference[name], rtol=2e-3)
        losses.append(loss)
        parts_seen.append((parts["bce"], parts["dice_loss"]))
        params, opt_state = update(params, opt_state, grads)
    np.testing.assert_allclose(losses, reference["adam_losses"], rtol=1e-3)
    np.testing.assert_allclose(parts_seen, reference["adam_bce_dice"], rtol=2e-3)


@pytest.mark.parametrize(
    ("encoder", "parameters", "total"),
    [("resnet34_preact", 24_438_804, 24_456_154), ("resnet34", 24_436_369, 24_455_377)],
)
def test_network_has_the_published_number_of_parameters(encoder, parameters, total):
    init = functools.partial(UNet(encoder).init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert elements(variables["params"]) == parameters
    assert elements(variables) == total


@pytest.mark.parametrize("parts", [Parts(), rewrites_for("cpu", training=True)], ids=["plain", "cpu"])
@pytest.mark.parametrize(
    ("encoder", "eval_numbers", "train_numbers"),
    [
        ("resnet34_preact", PREACT_EVAL, PREACT_TRAIN),
        ("resnet34", RESNET_EVAL, RESNET_TRAIN),
    ],
)
def test_tiny_network_gives_the_numbers_it_gave_when_it_agreed_with_the_references(
    encoder, eval_numbers, train_numbers, parts
):
    """Mean, standard deviation and largest magnitude of the logits; taken when the golden cases above passed."""
    model = tiny(encoder=encoder, parts=parts)
    image = np.random.Generator(np.random.PCG64(7)).random((2, 64, 64, 1), np.float32)
    variables = tiny_variables(model)
    logits = compiled_apply(model, variables, image)
    np.testing.assert_allclose(summary(logits), eval_numbers, rtol=1e-3)
    logits, _ = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, image)
    np.testing.assert_allclose(summary(logits), train_numbers, rtol=1e-3)


@pytest.mark.parametrize("encoder", ["resnet34_preact", "resnet34", "efficientnet-b4"])
def test_grey_image_is_repeated_and_output_is_float32_at_full_size(encoder):
    model = tiny(encoder=encoder, dtype=jnp.bfloat16)
    grey = jax.random.uniform(jax.random.key(0), (2, 32, 64, 1))
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(1), grey)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    variables = tiny_variables(model)
    # Not compiled as a whole: two programs may round differently.
    logits = model.apply(variables, grey, train=False)
    assert logits.shape == (2, 32, 64)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, model.apply(variables, jnp.repeat(grey, 3, -1), train=False))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("encoder", ["resnet34_preact", "resnet34", "efficientnet-b4"])
def test_every_choice_of_rewrites_has_the_variables_of_the_plain_network(encoder, backend, training):
    for channels in (1, 3):
        shapes, plain = (
            jax.eval_shape(
                functools.partial(tiny(encoder=encoder, parts=parts).init, train=False),
                jax.random.key(0),
                jnp.zeros((1, 32, 32, channels)),
            )
            for parts in (rewrites_for(backend, training), Parts())
        )
        assert shapes == plain


REWRITES = {
    "stem": {"parts": Parts(stem=grey_stem)},
    "pool": {"parts": Parts(pool=pool_by_slices)},
    "upsample": {"parts": Parts(upsample=folded_upsample)},
    "convolve": {"parts": Parts(convolve=convolve_with_explicit_gradients)},
    "packed stem": {"parts": Parts(stem=packed_grey_stem)},
    "pool with taps": {"parts": Parts(pool=pool_with_taps)},
    "explicit norm": {"parts": Parts(norm=ExplicitNorm)},
    "parted upsample": {"parts": Parts(upsample=parted_upsample)},
    "packed end": {"parts": Parts(decoder_end=packed_decoder_end)},
    "packed end, explicit norm": {"parts": Parts(decoder_end=packed_decoder_end, norm=ExplicitNorm)},
    "packed end, remat": {"parts": Parts(decoder_end=packed_decoder_end), "remat": True},
    "cpu": {"parts": rewrites_for("cpu", training=True)},
    "gpu": {"parts": rewrites_for("gpu", training=True)},
    "remat": {"remat": True},
}
# "cpu" and "gpu" have all but remat between them.
CHANGES = [
    pytest.param(change, id=name, marks=() if name in ("cpu", "gpu", "remat") else pytest.mark.slow)
    for name, change in REWRITES.items()
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "encoder",
    [
        "resnet34_preact",
        pytest.param("resnet34", marks=pytest.mark.long),
        pytest.param("efficientnet-b4", marks=pytest.mark.long),
    ],
)
def test_rewrites_change_neither_logits_nor_gradients_nor_statistics(encoder, change):
    """Leaf by leaf to 1e-12 of the largest in float64."""
    plain, rewritten = outcome(encoder, "float64"), outcome(encoder, "float64", **change)
    assert jax.tree.structure(plain) == jax.tree.structure(rewritten)
    for ours, reference in zip(*map(jax.tree.leaves, (rewritten, plain)), strict=True):
        assert np.abs(ours - reference).max() <= 1e-12 * max(1e-3, np.abs(reference).max())


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize("change", REWRITES.values(), ids=list(REWRITES))
@pytest.mark.parametrize("encoder", ["resnet34_preact", "resnet34", "efficientnet-b4"])
def test_rewrites_round_little_in_float32_as_users_have_it(encoder, change):
    """Logits to 1e-4 of the largest, gradients to 1e-4 of their norm."""
    plain, rewritten = (outcome(encoder, "float32", as_for_users=True, **each) for each in ({}, change))
    assert jax.tree.structure(plain) == jax.tree.structure(rewritten)
    assert_close(rewritten[0], plain[0], 1e-4)
    whole = [optax.tree.norm(g) for g in (jax.tree.map(np.subtract, rewritten[1], plain[1]), plain[1])]
    assert whole[0] < 1e-4 * whole[1]


@pytest.mark.parametrize(
    ("shape", "features", "size", "padding"),
    [
        ((2, 5, 7, 3), 4, 3, 1),
        ((3, 2, 3, 20), 30, 3, 1),  # the kernel outweighs the map
        ((1, 1, 1, 40), 30, 3, 1),  # nothing but padding around
        ((6, 2, 2, 3), 4, 3, 1),  # enlarged to 3x3
        ((2, 2, 2, 30), 40, 3, 1),
        ((6, 4, 64, 2), 3, 3, 1),  # wide: by parts of the batch
        ((2, 6, 5, 3), 2, 5, 2),
        ((2, 4, 5, 3), 4, 2, 1),
        ((2, 4, 5, 30), 40, 2, 0),
    ],
)
def test_explicit_gradients_are_those_of_the_convolution(shape, features, size, padding):
    rng = np.random.Generator(np.random.PCG64(4))
    with jax.enable_x64(True):
        x, kernel = rng.standard_normal(shape), rng.standard_normal((size, size, shape[-1], features))
        plain, plain_gradients = jax.vjp(lambda x, kernel: plain_convolve(x, kernel, 1, padding), x, kernel)
        ours, gradients = jax.vjp(lambda x, kernel: convolve_with_explicit_gradients(x, kernel, 1, padding), x, kernel)
        if shape[1:3] == (2, 2):
            np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)
        else:
            np.testing.assert_array_equal(ours, plain)
        cotangent = rng.standard_normal(plain.shape)
        for mine, reference in zip(gradients(cotangent), plain_gradients(cotangent), strict=True):
            np.testing.assert_allclose(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("encoder", ["resnet34_preact", "resnet34", "efficientnet-b4"])
def test_folded_network_predicts_the_same_and_has_no_statistics_behind_convolutions(encoder, backend):
    model = tiny(encoder=encoder, parts=rewrites_for(backend, training=False))
    image = np.random.Generator(np.random.PCG64(7)).random((2, 64, 64, 1), np.float32)
    variables = tiny_variables(model)
    folded = compiled_fold(variables, encoder, jnp.float32)
    assert_close(compiled_apply(model, folded, image), compiled_apply(model, variables, image), 1e-4)
    # Of all BatchNorms, the pre-activation encoder's first, its units' first and its last one remain.
    remaining = {"resnet34_preact": 2 * (1 + 4 + 1), "resnet34": 0, "efficientnet-b4": 0}[encoder]
    assert len(jax.tree.leaves(folded["batch_stats"])) == remaining
    kernels = compiled_fold(variables, encoder, jnp.bfloat16)["params"]
    assert kernels["decoder"]["block0"]["conv1"]["kernel"].dtype == jnp.bfloat16
    assert kernels["decoder"]["block0"]["bn1"]["bias"].dtype == jnp.float32


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("pool", [pool_by_slices, pool_with_taps])
def test_pooling_takes_the_maximum_of_each_window_and_its_gradient(pool, before):
    x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))
    np.testing.assert_array_equal(pool(x, before), plain_pool(x, before))
    weights = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    ours, reference = (
        jax.grad(lambda x, form=form: (form(x, before) * weights).sum())(x) for form in (pool, plain_pool)
    )
    np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-7)


def test_a_packed_map_holds_the_pixels_of_each_window_side_by_side():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(pack(x)[1, 1, 2], x[1, 2:4, 4:6].reshape(4, 3))
    np.testing.assert_array_equal(unpack(pack(x)), x)


def test_learnt_input_convolution_has_six_parameters_and_a_gradient():
    model = tiny(input_convolution=True)
    grey = jax.random.uniform(jax.random.key(0), (2, 32, 32, 1))
    variables = tiny_variables(model)
    assert elements(variables["params"]["input_convolution"]) == 6

    def mean_logit(params):
        logits, _ = model.apply({**variables, "params": params}, grey, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    gradient = jax.jit(jax.grad(mean_logit))(variables["params"])["input_convolution"]["kernel"]
    assert np.abs(gradient).max() > 0


def test_wrong_size_and_unknown_encoder_are_refused_in_words():
    with pytest.raises(ValueError, match="multiples of 32"):
        tiny().init(jax.random.key(0), jnp.zeros((1, 48, 32, 1)), train=False)
    with pytest.raises(ValueError, match="resnet34_preact, resnet34"):
        UNet("resnet18").init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)
