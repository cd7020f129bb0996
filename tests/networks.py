"""What the tests of the network share: golden cases, weights drawn by NumPy, tiny networks and what they compute."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.model.folding import fold
from jaxpneumo.model.unet import UNet
from jaxpneumo.run.config import Loss
from jaxpneumo.train.losses import segmentation_loss

# Compiler options and, with the fixture `compiled_as_for_users`, programs as users have them.
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True}


def golden(shared: Path, file: Path):
    """The module that draws weights, a file of reference values, and their images (3, 64, 64, 3) and masks."""
    specification = importlib.util.spec_from_file_location("golden_weights", shared / "golden" / "weights.py")
    weights = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(weights)
    reference = np.load(file)
    images, masks = weights.batch(3, 64)
    image = np.repeat(images[..., None].astype(np.float32) / 255, 3, axis=-1)
    return weights, reference, image, masks


def drawn(entries, kind_of, weights):
    """Weights for entries "name|shape", each drawn from its own name."""
    out = {}
    for entry in entries:
        name, shape = str(entry).split("|")
        shape = tuple(int(n) for n in shape.split(","))
        out[name] = weights.array(name, shape, kind_of(name, len(shape)))
    return out


def summary(feature):
    """Mean, standard deviation and largest magnitude."""
    feature = np.asarray(feature)
    return np.array([feature.mean(), feature.std(ddof=1), np.abs(feature).max()])


def elements(tree):
    """How many numbers the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def assert_close(ours, reference, relative=1e-3):
    """Agreement relative to the reference's largest magnitude, as float32 convolutions allow."""
    np.testing.assert_allclose(ours, reference, rtol=0, atol=relative * np.abs(reference).max())


def pattern(variables, seed):
    """The same weights in every version of every library: drawn by NumPy, leaf by leaf in the order of names."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.uniform(0.5, 1.5, leaf.shape) if kind in ("scale", "var") else 0.1 * rng.standard_normal(leaf.shape)

    return jax.tree_util.tree_map_with_path(lambda path, leaf: draw(path, leaf).astype(np.float32), variables)


def tiny(**kwargs):
    return UNet(depths=(1, 1, 1, 1), width=8, **kwargs)


def tiny_variables(model, seed=1):
    """Weights of `pattern` for a network of `tiny`; a program that initialises them would take seconds to compile."""
    image = jnp.zeros((1, 32, 32, 1))
    return pattern(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image), seed)


# One program each, where single operations would compile hundreds.
compiled_apply = jax.jit(lambda model, variables, image: model.apply(variables, image, train=False), static_argnums=0)
compiled_fold = jax.jit(fold, static_argnums=(1, 2))


@functools.cache
def outcome(encoder, dtype, as_for_users=False, **change):
    """Logits, then gradients and updated statistics, of a tiny network on images that lie clear of ReLU's corner.

    An activation may lie so close to zero that rounding decides whether its gradient passes; then the plain network's
    own float32 gradient is off by 1e-2. With these images none lies closer than 2e-6 of the largest of its map.
    """
    image = np.random.Generator(np.random.PCG64(11)).random((2, 64, 64, 1))
    mask = np.random.Generator(np.random.PCG64(8)).random((2, 64, 64)) < 0.1
    with jax.enable_x64(dtype == "float64"):
        model = tiny(encoder=encoder, dtype=jnp.dtype(dtype), **change)
        shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), pattern(shapes, seed=1))

        def loss(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                image.astype(dtype),
                train=True,
                mutable=["batch_stats"],
            )
            return segmentation_loss(logits, mask.astype(dtype), np.ones(2), Loss("image"))[0], (
                logits,
                updated["batch_stats"],
            )

        step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=AS_FOR_USERS if as_for_users else None)
        (_, (logits, statistics)), gradients = step(variables["params"])
        return jax.tree.map(np.asarray, (logits, gradients, statistics))
