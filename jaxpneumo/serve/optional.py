"""The modules of this folder whose libraries come with the extra `serve`, imported when they are needed."""

from importlib import import_module
from typing import Any

from jaxpneumo.process.errors import InputError

MODULES = {"dicom": "jaxpneumo.serve.listener", "dicomweb": "jaxpneumo.serve.dicomweb"}


def library(kind: str) -> Any:
    """The module that talks "dicom" or "dicomweb". Raises InputError where its library is not installed."""
    try:
        return import_module(MODULES[kind])
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'jaxpneumo[serve]'") from error
