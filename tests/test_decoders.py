"""The decoder's options: attention as segmentation_models_pytorch has it, and hypercolumns.

tests/golden/make_smp.py writes the golden values. The weights that they belong to are drawn by ../shared.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import load_config
from networks import assert_close, drawn, elements, golden, outcome, pattern, tiny
from safetensors.numpy import save_file

from jaxpneumo.model import pretrained
from jaxpneumo.model.attention import SCSE
from jaxpneumo.model.convolution import Convolution
from jaxpneumo.model.folding import fold
from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import Parts, UNet
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Loss, typed
from jaxpneumo.run.network import make_model
from jaxpneumo.train.losses import segmentation_loss

OPTIONS = {"scse": {"attention": "scse"}, "hypercolumns": {"hypercolumns": True}}
BOTH = {"attention": "scse", "hypercolumns": True}
# As segmentation_models_pytorch counts them, of which the last block's first attention (32 channels) is never used.
PARAMETERS, UNUSED = 24_550_360, 32 * 2 + 2 + 2 * 32 + 32 + 32 + 1


def shapes_of(**options):
    init = functools.partial(UNet("resnet34", **options).init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))


@pytest.fixture(scope="module")
def case(shared):
    file = Path(__file__).parent / "golden/smp_resnet34_scse_unet.npz"
    weights, reference, image, masks = golden(shared, file)
    named = drawn(reference["names"], weights.torch_kind, weights)
    return named, reference, image, masks


@pytest.fixture
def double(case):
    """The same in float64: network, variables and images."""
    named, _, image, masks = case
    with jax.enable_x64(True):
        variables = pretrained.from_torch(named, shapes_of(attention="scse"))
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        yield UNet("resnet34", jnp.float64, attention="scse"), variables, image.astype(np.float64), masks.astype(float)


@pytest.mark.long
def test_attention_agrees_with_smp_in_evaluation(case, double):
    model, variables, image, _ = double
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, image)
    assert_close(np.asarray(logits), case[1]["eval_logits"], 1e-7)


@pytest.mark.slow
def test_attention_agrees_with_smp_in_training(case, double):
    """Logits, loss and the norm of every gradient of the first step."""
    reference, (model, variables, image, masks) = case[1], double

    @jax.jit
    def step(params):
        def loss_fn(params):
            logits, _ = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            loss, _ = segmentation_loss(logits, masks, jnp.ones(len(image)), Loss("image"))
            return loss, logits

        (loss, logits), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, logits, jax.tree.map(lambda gradient: jnp.linalg.norm(gradient.ravel()), gradients)

    loss, logits, norms = jax.device_get(step(variables["params"]))
    assert_close(logits, reference["train_logits"], 1e-7)
    np.testing.assert_allclose(loss, reference["losses"][0], rtol=1e-6)
    by_name = {pretrained.torch_name(path): norm for path, norm in flatten_dict(norms).items()}
    assert by_name.keys() == set(reference["gradient_names"])
    ours = [by_name[name] for name in reference["gradient_names"]]
    np.testing.assert_allclose(ours, reference["gradient_norms"], rtol=1e-6, atol=1e-9)


def test_the_network_has_smps_parameters():
    assert elements(shapes_of(attention="scse")["params"]) == PARAMETERS - UNUSED


@pytest.mark.long
def test_files_of_smp_load_and_no_other_decoders(case, tmp_path):
    named = {name: array.astype(np.float32) for name, array in case[0].items()}
    save_file(named, tmp_path / "unet.safetensors")

    def zeros(**options):
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes_of(**options))

    params = pretrained.load(tmp_path / "unet.safetensors", zeros(attention="scse"))["params"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(params))
    kernel = named["decoder.blocks.2.attention1.attention.cSE.3.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["decoder"]["block2"]["attention1"]["channel2"]["kernel"], kernel)
    with pytest.raises(InputError, match=r"model\.attention its decoder's"):
        pretrained.load(tmp_path / "unet.safetensors", zeros())
    without = {name: array for name, array in named.items() if ".attention" not in name}
    save_file(without, tmp_path / "plain.safetensors")
    assert pretrained.load(tmp_path / "plain.safetensors", zeros())
    with pytest.raises(InputError, match=r"missing decoder\.blocks\.0\.attention1\.attention\.cSE\.1\.weight"):
        pretrained.load(tmp_path / "plain.safetensors", zeros(attention="scse"))
    encoder = {name: array for name, array in named.items() if name.startswith("encoder.")}
    save_file(encoder, tmp_path / "encoder.safetensors")
    assert pretrained.load(tmp_path / "encoder.safetensors", zeros(**BOTH))


def test_attention_by_hand():
    """Channels of means 1 and 2: hidden 1 * 1 + 2 * 3 - 4 = 3; pixels by their channels' difference."""
    x = jnp.stack([jnp.array([[0.0, 2], [1, 1]]), jnp.array([[4.0, 0], [2, 2]])], -1)[None]
    params = {
        "channel1": {"kernel": jnp.array([1.0, 3]).reshape(1, 1, 2, 1), "bias": jnp.array([-4.0])},
        "channel2": {"kernel": jnp.array([1.0, -1]).reshape(1, 1, 1, 2), "bias": jnp.array([0.0, 1])},
        "pixel": {"kernel": jnp.array([1.0, -1]).reshape(1, 1, 2, 1), "bias": jnp.array([0.5])},
    }
    y = SCSE(Convolution).apply({"params": params}, x)
    of_channel = 1 / (1 + np.exp([-3.0, 2.0]))
    of_pixel = 1 / (1 + np.exp(-(np.array([[-4.0, 2], [-1, -1]]) + 0.5)))
    np.testing.assert_allclose(y[0], x[0] * (of_channel + of_pixel[..., None]), rtol=1e-6)


def test_the_head_of_hypercolumns_sees_every_block():
    """It has the channels of all five, and a constant map of any block adds its value times the kernel's sum."""
    variables = shapes_of(hypercolumns=True)
    assert variables["params"]["segmentation_head"]["kernel"].shape == (3, 3, 256 + 128 + 64 + 32 + 16, 1)
    model = tiny(encoder="resnet34", hypercolumns=True)
    image = np.random.Generator(np.random.PCG64(7)).random((1, 64, 64, 1), np.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    params = pattern(shapes, seed=1)
    # Without scale every block's last BatchNorm gives its bias, here 1 to 5 of the blocks in their order.
    for block in range(5):
        norm = params["params"]["decoder"][f"block{block}"]["bn2"]
        norm["scale"], norm["bias"] = 0 * norm["scale"], 0 * norm["bias"] + block + 1
    head = params["params"]["segmentation_head"]
    logits = model.apply(params, image, train=False)
    channels = np.repeat(np.arange(1, 6), [32, 16, 8, 4, 2])
    expected = (head["kernel"].sum((0, 1))[:, 0] * channels).sum() + head["bias"][0]
    np.testing.assert_allclose(logits[0, 1:-1, 1:-1], expected, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("option", OPTIONS)
def test_faster_forms_and_remat_change_nothing(option):
    """Leaf by leaf to 1e-11 in float64, with the forms of a CPU."""
    plain = outcome("resnet34", "float64", **OPTIONS[option])
    for change in ({"parts": rewrites_for("cpu", training=True)}, {"remat": True}):
        changed = outcome("resnet34", "float64", **OPTIONS[option], **change)
        for ours, reference in zip(*map(jax.tree.leaves, (changed, plain)), strict=True):
            assert np.abs(ours - reference).max() <= 1e-11 * max(1e-3, np.abs(reference).max())


@pytest.mark.parametrize("option", OPTIONS)
def test_the_fast_end_is_for_the_plain_decoder_alone(option):
    def refuse(block, head, x):
        raise AssertionError("the plain block and head alone have this form")

    image = jnp.zeros((1, 32, 32, 1))
    model = tiny(encoder="resnet34", parts=Parts(decoder_end=refuse), **OPTIONS[option])
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    plain = tiny(encoder="resnet34", parts=Parts(decoder_end=refuse))
    with pytest.raises(AssertionError):
        jax.eval_shape(functools.partial(plain.init, train=False), jax.random.key(0), image)


def test_folded_network_predicts_the_same():
    model = tiny(encoder="resnet34", parts=rewrites_for("cpu", training=False), **BOTH)
    image = np.random.Generator(np.random.PCG64(7)).random((2, 64, 64, 1), np.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    variables = pattern(shapes, seed=1)
    folded = fold(variables, "resnet34", jnp.float32)
    assert not jax.tree.leaves(folded["batch_stats"])
    apply = jax.jit(functools.partial(model.apply, train=False))
    assert_close(apply(folded, image), apply(variables, image), 1e-4)


def test_configs_choose_them():
    config = load_config("exp5").to_dict()
    assert (typed(config).model.attention, typed(config).model.hypercolumns) == ("none", False)
    config["model"] |= BOTH
    model = make_model(typed(config).model)
    assert (model.attention, model.hypercolumns) == ("scse", True)
    config["model"]["attention"] = "other"
    with pytest.raises(InputError, match=r'model\.attention must be "none" or "scse"'):
        typed(config)
    with pytest.raises(ValueError, match="unknown attention"):
        tiny(attention="other").init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), False)
    networks = ("resnet34", "resnet50", "se_resnext50_32x4d")
    assert [load_config(f"winner:{network}").model.attention for network in networks] == ["none", "none", "scse"]
