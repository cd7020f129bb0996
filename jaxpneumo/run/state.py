"""The train state: a plain pytree that holds all a stage changes, and its weight average."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from jaxpneumo.model.unet import UNet

if TYPE_CHECKING:  # prediction reads checkpoints without an optimizer
    import optax


@struct.dataclass
class TrainState:
    """Everything a training step reads and replaces.

    Attributes:
      step: int32 scalar, steps taken in this stage.
      params, batch_stats: the network's variables, float32.
      opt_state: Adam's moments.
      swa_params: mean of the parameters at the ends of the epochs counted by `swa_count` (zeros before).
      swa_count: int32 scalar.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    swa_params: Any
    swa_count: jax.Array


def initialise(model: UNet, seed: int) -> dict[str, Any]:
    """Fresh variables {"params", "batch_stats"} of a network; the input's size does not matter."""
    return _initialiser(cast(Hashable, model))(jax.random.key(seed), jnp.zeros((1, 32, 32, 1)))


@functools.lru_cache(maxsize=4)
def _initialiser(model: Any) -> Callable[..., dict[str, Any]]:
    # The program runs once. On two CPU cores, compiling it takes 18 s with optimisation and 6 s without.
    # The bits are the same. On a GPU this was not measured.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    options = quickly if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(model.init, train=False), compiler_options=options)


def variable_shapes(model: UNet) -> dict[str, Any]:
    """Structure, shapes and types of a network's variables, without computing any."""
    return jax.tree.map(lambda shape: shape, _shapes(cast(Hashable, model)))  # the caller's own tree


@functools.lru_cache(maxsize=4)
def _shapes(model: Any) -> dict[str, Any]:
    # An ensemble's runs have one network: it is traced once, which takes half a second and more.
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 1)))


def create_train_state(variables: dict[str, Any], optimizer: "optax.GradientTransformation") -> TrainState:
    """A stage's first state: the given variables, a fresh optimizer, an empty average."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        swa_params=jax.tree.map(jnp.zeros_like, variables["params"]),
        swa_count=jnp.zeros((), jnp.int32),
    )


def update_average(state: TrainState) -> TrainState:
    """Takes the current parameters into the running mean (SWA, Izmailov et al. 2018, eq. 1)."""
    count = state.swa_count + 1
    mean = jax.tree.map(lambda m, p: m + (p - m) / count, state.swa_params, state.params)
    return replace(state, swa_params=mean, swa_count=count)
