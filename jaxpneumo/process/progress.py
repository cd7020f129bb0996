"""The progress bar of every long job: done, rate, time left, on standard error."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

# No bars at all, whatever is asked for; the option --quiet of every verb.
silent = False

# At the end of a bar while its first call is compiled, so that it does not seem to hang.
COMPILING = "compiling, once"


def progress_bar(
    items: Iterable | None = None,
    total: int | None = None,
    unit: str = "image",
    description: str = "",
    quiet: bool = False,
    initial: int = 0,
) -> "tqdm":
    """A progress bar over `items`, or one to be moved by `update(n)` when there are none.

    Outside a terminal (a log file, a batch system) it draws a line every ten seconds only.
    """
    from tqdm import tqdm  # here: --help does without

    bar = tqdm(
        items,
        total=total,
        unit=unit,
        desc=description,
        disable=quiet or silent,
        dynamic_ncols=True,
        smoothing=0.1,
        initial=initial,
    )
    if not bar.disable and not bar.fp.isatty():
        bar.mininterval, bar.maxinterval = 10.0, 30.0
    return bar
