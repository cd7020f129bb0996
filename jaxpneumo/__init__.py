"""jaxpneumo: finds and outlines pneumothorax in chest radiographs with JAX. Research use only; not a medical device.

From Python: `model = jaxpneumo.load("runs/exp5")`, then `model.predict("film.dcm")`; see `jaxpneumo.api`. Nothing that
takes time is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpneumo.api import LoadedModel, Result, load, read_radiograph, write_png

__version__ = "0.1.0"
__all__ = ["LoadedModel", "Result", "load", "read_radiograph", "write_png"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxpneumo import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
