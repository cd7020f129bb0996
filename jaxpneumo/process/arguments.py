"""The command line of a verb: argparse, whose answer to wrong use is an InputError that says what would be right."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.ranges import Numbers, Several, did_you_mean


class Parser(argparse.ArgumentParser):
    """Options of a verb. The help of a number says its range; a name that is mistyped is answered with the right one.

    Raises:
      InputError: wrong use, when the arguments are parsed.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """As argparse's."""
        if isinstance(settings.get("type"), Numbers | Several):
            settings["help"] = f"{settings.get('help', '')}; {settings['type']}".removeprefix("; ")
        return super().add_argument(*names, **settings)

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads of other namespaces
        self, arguments: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's."""
        for name in (argument.split("=")[0] for argument in arguments if argument.startswith("--")):
            if not any(known.startswith(name) for known in self._option_string_actions):
                self.error(f"there is no option {name}.{did_you_mean(name, self._option_string_actions)}")
        options, rest = self.parse_known_args(arguments, namespace)
        if rest:
            self.error(f"{rest[0]} is not understood")
        return options

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        self, arguments: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's."""
        return super().parse_known_args(_with_negatives(arguments), namespace or argparse.Namespace())

    def error(self, message: str) -> NoReturn:
        """As argparse's, without leaving the program."""
        message = message.removeprefix("argument ").rstrip(".")
        end = "" if message.endswith("?") else "."
        raise InputError(f"{message}{end} `{self.prog} --help` explains the options.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            text = f"{value} cannot be used; give one of {', '.join(choices)}.{did_you_mean(str(value), choices)}"
            raise argparse.ArgumentError(action, text)


def _with_negatives(arguments: Sequence[str]) -> list[str]:
    """Numbers below 0 fastened to their option: by themselves argparse takes -inf and -1e9 for options."""
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        negative = re.match(r"-(\d|\.\d|inf|nan)", argument, re.IGNORECASE)
        if negative and before.startswith("--") and "=" not in before:
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    return joined
