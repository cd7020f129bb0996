"""The functions of `step.py` compiled for a mesh: state on every device, batches split along the devices.

All programs of a run's stages are compiled before the first one starts, several at a time. Each is kept by the settings
and shapes that it depends on, so that stages and runs of one process that agree in them trace and compile once: two
thresholds share the training step, two losses the statistics.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpneumo.augment.device import DeviceAugment
from jaxpneumo.process.progress import COMPILING, progress_bar
from jaxpneumo.run.config import Loss, Model
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import is_first, replicated, split, split_calls
from jaxpneumo.run.state import TrainState, create_train_state, update_average, variable_shapes
from jaxpneumo.train.optimizer import make_optimizer
from jaxpneumo.train.step import (
    make_eval_call,
    make_eval_step,
    make_statistics_call,
    make_train_call,
    make_train_step,
)

# Beside each other. Each takes memory, and the compiler uses several cores for one already.
AT_A_TIME = 4
# Functions of each kind, for as many different settings, and programs: the stages of a run, or runs of one process.
KEPT, KEPT_PROGRAMS = 8, 64

# A jitted function with the arguments that it is to be compiled for.
Program = tuple[Any, ...]
# The compiled ones by function and arguments' shapes, the newest last.
_kept: dict[Any, Callable[..., Any]] = {}


class Shapes(NamedTuple):
    """What a stage's programs depend on beside its network.

    Attributes:
      size, batch_size: of the stage.
      training, validation: images on the device, with what fills batches; 0 where they are streamed.
      steps: the different numbers of steps of its calls.
      batches: the different numbers of batches of its validation's calls.
      statistics: the different numbers of batches of the calls for BatchNorm statistics.
    """

    size: int
    batch_size: int
    training: int
    validation: int
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    statistics: tuple[int, ...]


class StageFunctions(NamedTuple):
    """What a stage runs on the devices.

    Attributes:
      copy: state -> state; the given one may be donated then.
      average: of `update_average`, state -> state.
      train, evaluate, statistics: of `make_train_call`, `make_eval_call`, `make_statistics_call`, by the number of
        steps or batches.
    """

    copy: Callable[..., Any]
    average: Callable[..., Any]
    train: dict[int, Callable[..., Any]]
    evaluate: dict[int, Callable[..., Any]]
    statistics: dict[int, Callable[..., Any]]


def different(numbers: Iterable[int]) -> tuple[int, ...]:
    """Each number once, in order."""
    return tuple(sorted(set(numbers)))


@lru_cache(maxsize=KEPT)
def state_maker(mesh: Mesh) -> Callable[..., TrainState]:
    """`create_train_state`, variables -> state, compiled when it is first called."""
    optimizer = make_optimizer()
    return jax.jit(lambda variables: create_train_state(variables, optimizer), out_shardings=replicated(mesh))


def stage_functions(programs: dict[tuple[str, int], Program]) -> StageFunctions:
    """The functions of `stage_programs`, compiled."""
    compiled = compile_programs(programs)
    by_name = {
        name: {number: compiled[kind, number] for kind, number in compiled if kind == name}
        for name in ("train", "evaluate", "statistics")
    }
    return StageFunctions(compiled["copy", 0], compiled["average", 0], **by_name)


def stage_programs(
    settings: Model,
    loss: Loss,
    seed: int,
    threshold: float,
    augment: DeviceAugment | None,
    mesh: Mesh,
    shapes: Shapes,
) -> dict[tuple[str, int], Program]:
    """The programs for a network, its loss and shapes, by name and number of steps or batches.

    Args:
      settings, loss, seed: the config's.
      threshold: of the probability, for the scores of `evaluate`.
      augment: of `augment.device.make_augment`, or None.
      mesh: the devices.
      shapes: of what the functions will be given.
    """
    copy, average = _state_functions(mesh)
    train = _train(settings, loss, seed, augment, mesh)
    evaluate = _evaluate(settings, loss, threshold, mesh)
    statistics = _statistics(settings, mesh)

    state = jax.eval_shape(state_maker(mesh), variable_shapes(make_model(settings)))
    params, batch_stats = state.params, state.batch_stats
    training, validation = _arrays(shapes, shapes.training), _arrays(shapes, shapes.validation)
    rates, stop = _shape((2,), jnp.float32), _shape((mesh.size,), jnp.bool_)
    sums = batch_stats, _shape((), jnp.int32)
    programs: dict[tuple[str, int], Program] = {}  # the ones that take longest first
    for steps in shapes.steps:
        programs["train", steps] = train, state, training, _feed(shapes, training, steps), rates, stop
    for batches in shapes.statistics:
        programs["statistics", batches] = statistics, params, sums, training, _feed(shapes, training, batches), stop
    for batches in shapes.batches:
        feed = _feed(shapes, validation, batches, weighted=True)
        programs["evaluate", batches] = evaluate, params, batch_stats, validation, feed, stop
    programs["copy", 0] = copy, state
    programs["average", 0] = average, state
    return programs


@lru_cache(maxsize=KEPT)
def _state_functions(mesh: Mesh) -> tuple[Any, Any]:
    everywhere = replicated(mesh)
    copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), in_shardings=everywhere, out_shardings=everywhere)
    return copy, jax.jit(update_average, in_shardings=everywhere, out_shardings=everywhere, donate_argnums=0)


@lru_cache(maxsize=KEPT)
def _train(settings: Model, loss: Loss, seed: int, augment: DeviceAugment | None, mesh: Mesh) -> Any:
    everywhere = replicated(mesh)
    return jax.jit(
        make_train_call(make_train_step(make_model(settings), make_optimizer(), loss, augment, seed)),
        in_shardings=(everywhere, everywhere, split_calls(mesh), everywhere, split(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
    )


@lru_cache(maxsize=KEPT)
def _evaluate(settings: Model, loss: Loss, threshold: float, mesh: Mesh) -> Any:
    everywhere = replicated(mesh)
    return jax.jit(
        make_eval_call(make_eval_step(make_model(settings), loss, threshold)),
        in_shardings=(everywhere, everywhere, everywhere, split_calls(mesh), split(mesh)),
        out_shardings=everywhere,
    )


@lru_cache(maxsize=KEPT)
def _statistics(settings: Model, mesh: Mesh) -> Any:
    everywhere = replicated(mesh)
    return jax.jit(
        make_statistics_call(make_model(settings)),
        in_shardings=(everywhere, everywhere, everywhere, split_calls(mesh), split(mesh)),
        out_shardings=everywhere,
        donate_argnums=1,
    )


def compile_programs(programs: Mapping[Any, Program]) -> dict[Any, Callable[..., Any]]:
    """Compiles what has not been compiled before. The bar says that it takes a while."""
    keys = {}
    for name, (function, *arguments) in programs.items():
        leaves, tree = jax.tree.flatten(arguments)
        keys[name] = function, tree, tuple(leaves)
    if missing := list(dict.fromkeys(key for key in keys.values() if key not in _kept)):
        # Of several processes each must come to the same program at the same time, as some exchange what they find.
        threads = AT_A_TIME if jax.process_count() == 1 else 1
        with (
            ThreadPoolExecutor(threads) as executor,
            progress_bar(None, len(missing), "program", "programs", quiet=not is_first()) as bar,
        ):
            bar.set_postfix_str(COMPILING)
            waiting = {executor.submit(_program, *key): key for key in missing}
            for done in as_completed(waiting):
                _kept[waiting[done]] = done.result()
                bar.update()
    compiled = {name: _kept[key] for name, key in keys.items()}
    for oldest in list(_kept)[:-KEPT_PROGRAMS]:
        del _kept[oldest]
    return compiled


def _program(function: Any, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Callable[..., Any]:
    """A jitted function compiled for arguments of these shapes."""
    return function.lower(*jax.tree.unflatten(tree, leaves)).compile()


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _arrays(shapes: Shapes, images: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of `load_resident` and `load_validation`."""
    return _pixels((images,), shapes.size) if images else {}


def _feed(shapes: Shapes, resident: dict[str, Any], steps: int, weighted: bool = False) -> dict[str, Any]:
    """Of one call of `training_feed`; with `weighted` of `validation_feed`."""
    batch = steps, shapes.batch_size
    feed = {"index": _shape(batch, jnp.int32)} if resident else _pixels(batch, shapes.size)
    return feed if resident and not weighted else {**feed, "weight": _shape(batch, jnp.float32)}


def _pixels(leading: tuple[int, ...], size: int) -> dict[str, jax.ShapeDtypeStruct]:
    image, mask = (*leading, size, size), (*leading, size, size // 8)
    return {"image": _shape(image, jnp.uint8), "mask": _shape(mask, jnp.uint8)}
