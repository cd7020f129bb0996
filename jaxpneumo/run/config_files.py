"""Config files: where they are, how one is read, and what was wrong with one in words."""

import re
import runpy
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import LATER, SELDOM, STAGE_LATER
from jaxpneumo.run.config_values import ALLOWED, STAGES

SHIPPED = Path(__file__).parent.parent / "configs"


def find_config_file(given: str) -> str:
    """The file that --config names, with what follows its colon: "configs/augmentation_study.py:A1".

    configs/NAME.py is one of the shipped files wherever the command runs, unless the current folder has its own.

    Raises InputError where there is no such file.
    """
    name, colon, argument = given.partition(".py:")
    file = Path(name.removesuffix(".py") + ".py")
    found = SHIPPED / file.name if not file.is_file() and file.parent == Path("configs") else file
    if not found.is_file():
        known = ", ".join(sorted(f"configs/{path.name}" for path in SHIPPED.glob("*.py")))
        raise InputError(f"--config={given}: there is no file {file} here; configs/ has the shipped ones: {known}.")
    return f"{found}:{argument}" if colon else str(found)


def read_config_file(found: str) -> ConfigDict:
    """What a config file's get_config() returns, with all keys that it may leave out at their defaults.

    Args:
      found: of `find_config_file`.

    Returns:
      The locked config: a flag can set every key that configs have, and none can make a new one.
    """
    path, colon, argument = found.partition(".py:")
    module = runpy.run_path(f"{path}.py" if colon else path)
    config = module["get_config"](*([argument] if argument else []))
    defaults = LATER | {f"{stage}.{key}": value for stage in STAGES for key, value in STAGE_LATER.items()}
    places = defaults | {key: config_dict.placeholder(kind) for key, kind in SELDOM.items()}
    for name, default in places.items():
        section, _, key = name.rpartition(".")
        values = config.get(section) if section else config
        if values is not None and key not in values:
            values.unlock()
            values[key] = config_dict.placeholder(float) if default is None else default
    if "predict" in config and isinstance(config.predict.get("tta"), bool):
        with config.predict.ignore_type():  # as text, which a flag can make names of
            config.predict.tta = str(config.predict.tta)
    config.lock()
    return config


def why_refused(error: Exception) -> str:
    """What a config file or ml_collections said against a value, in one line without traceback and quotation."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0]) if error.args else str(error)
    given = re.match(r"flag (--config\.([\w.]+)=.*?): ", text, re.DOTALL)
    if given and given[2] in ALLOWED:
        return f"{given[1]} is not {ALLOWED[given[2]]}."
    return text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
