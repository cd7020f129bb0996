"""Config files: where they are, how one is read, and what was wrong with one in words."""

import re
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.ranges import did_you_mean
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

    Raises:
      InputError: it has a key that no config has.
    """
    path, colon, argument = found.partition(".py:")
    module = runpy.run_path(f"{path}.py" if colon else path)
    config = module["get_config"](*([argument] if argument else []))
    for name in _names(config.to_dict()):
        known = [key for key in ALLOWED if f"{key}.".startswith(f"{name}.")]
        if not known:
            raise InputError(f"{found} has {name}, which no config has.{did_you_mean(name, ALLOWED)}")
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


def check_flags(arguments: Sequence[str], config: ConfigDict, config_file: str) -> None:
    """Refuses flags that neither the program nor the config has, and says which one may be meant.

    Args:
      arguments: of the command line, without --config=FILE.
      config: of `read_config_file`.
      config_file: the file, as --config named it.

    Raises:
      InputError: there is such a flag.
    """
    known = set(_names(config.to_dict()))
    for argument in arguments:
        flag = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if not flag:
            check_option(argument)
            continue
        name = flag[1]
        if name in known:
            continue
        sections = [key.rpartition(".")[0] for key in ALLOWED if f"{key}.".startswith(f"{name}.")]
        section = next((each for each in sections if each and each not in known), "")
        if section:
            example = "quickstart" if section == "data.synthetic" else "exp5"
            raise InputError(
                f"{config_file} has no {section}; add the section to a copy of the file, as in configs/{example}.py: a "
                "flag changes values only."
            )
        raise InputError(
            f"there is no --config.{name}.{did_you_mean(f'--config.{name}', [f'--config.{key}' for key in known])}"
        )


def check_option(argument: str) -> None:
    """Raises InputError for an argument that begins as an option does and is none of `train`."""
    option = re.match(r"--?[A-Za-z][^=]*", argument)
    known = ("--config", "--workdir")
    if option and f"--{option[0].lstrip('-')}" not in known:
        raise InputError(f"there is no option {option[0]}.{did_you_mean(option[0], known)}")


def _names(values: dict[str, Any], before: str = "") -> Iterator[str]:
    """The full names of all sections and values."""
    for key, value in values.items():
        yield before + key
        if isinstance(value, dict):
            yield from _names(value, f"{before}{key}.")


def why_refused(error: Exception) -> str:
    """What a config file or ml_collections said against a value, in one line without traceback and quotation."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0]) if error.args else str(error)
    given = re.match(r"flag (--config\.([\w.]+)=.*?): ", text, re.DOTALL)
    if given and given[2] in ALLOWED:
        return f"{given[1]} is not {ALLOWED[given[2]]}."
    return text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
