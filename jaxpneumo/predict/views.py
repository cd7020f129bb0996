"""Views of test-time augmentation: images are changed, predicted, and their probabilities brought back to their place.

Each view counts alike in the mean. "flip" adds the mirror image of every other view. "scale" adds a smaller and a
larger image, by a quarter of the size or nearly so: the network takes multiples of 32. "shift" adds the image moved
down and to the right by a 64th of its size, and up and to the left. The views of one size are one batch of the network.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxpneumo.predict.native import shrink

MULTIPLE = 32  # of what the network takes


def scaled_sizes(size: int) -> tuple[int, ...]:
    """The sizes of the views of "scale": 384 and 640 for 512. The smallest image has no smaller one."""
    step = MULTIPLE * max(1, round(size / 4 / MULTIPLE))
    return tuple(other for other in (size - step, size + step) if other >= MULTIPLE)


def shift_of(size: int) -> int:
    """The pixels by which the views of "shift" are moved along both axes."""
    return max(1, size // 64)


def mean_of_views(
    predict: Callable[[jax.Array], jax.Array], image: jax.Array, names: Sequence[str]
) -> tuple[jax.Array, jax.Array]:
    """Computes the probabilities of images, and their mean over all views.

    Args:
      predict: (N, H, H) in 0 to 255 -> float32 (N, H, H), whose view may be of another size than the images.
      image: uint8 (B, S, S).
      names: some of `run.tta.NAMES`.

    Returns:
      Two arrays float32 (B, S, S). A pixel that a shift moves out of the image has no part in its mean.
    """
    size, flip = image.shape[-1], "flip" in names
    moves = (0, shift_of(size), -shift_of(size)) if "shift" in names else (0,)
    probability = _predict_views(predict, [_moved(image, move)[0] for move in moves], flip)
    plain, total = probability[0], jnp.zeros(())
    count: np.ndarray | int = 0
    # The mirror images come behind the others and are already turned back.
    for view, move in zip(probability, moves * (2 if flip else 1), strict=True):
        back, inside = _moved(view, -move)
        total += back if not move else jnp.where(inside, back, 0.0)
        count = count + (inside if "shift" in names else 1)
    for other in scaled_sizes(size) if "scale" in names else ():
        views = _predict_views(predict, [_resized(image, other)], flip)
        total += jax.image.resize(sum(views), image.shape, "linear")
        count = count + len(views)
    return plain, total / count


def _predict_views(predict: Callable[[jax.Array], jax.Array], views: list[jax.Array], flip: bool) -> list[jax.Array]:
    """The probabilities of views of one size, (B, H, H) each, and behind them those of their mirror images."""
    batch = jnp.stack([*views, *(view[..., ::-1] for view in views if flip)], axis=1)
    # All views of an image follow it, so they stay on the same device.
    probability = predict(batch.reshape(-1, *batch.shape[2:])).reshape(batch.shape)
    own = [probability[:, number] for number in range(batch.shape[1])]
    return [*own[: len(views)], *(view[..., ::-1] for view in own[len(views) :])]


def _moved(image: jax.Array, pixels: int) -> tuple[jax.Array, np.ndarray | bool]:
    """(B, S, S) moved down and to the right, with its border repeated; and which pixels (S, S) show the image."""
    if not pixels:
        return image, True
    size = image.shape[-1]
    source = np.arange(size) - pixels
    rows = np.clip(source, 0, size - 1)
    inside = source == rows
    return image[:, rows][:, :, rows], inside[:, None] & inside


def _resized(image: jax.Array, size: int) -> jax.Array:
    """uint8 (B, S, S) at another size: means over areas, or between pixels where it is larger."""
    if size < image.shape[-1]:
        return shrink(image, size)
    return jax.image.resize(image.astype(jnp.float32), (image.shape[0], size, size), "linear")
