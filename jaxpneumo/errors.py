"""The failures that have a message for the user, and the exit codes of every verb.

0 done, 2 wrong use or bad input, 3 partial (some inputs were set aside), 75 stopped by a signal after saving,
1 failure.
"""

import errno
import sys
from collections.abc import Callable, Sequence

DONE, FAILED, BAD_INPUT, PARTIAL = 0, 1, 2, 3
# sysexits.h's EX_TEMPFAIL: try again later
STOPPED = 75


class InputError(ValueError):
    """Wrong use or bad input; the message says what to do about it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class Stopped(BaseException):
    """SIGTERM came, and what had to be saved is saved.

    No Exception, as KeyboardInterrupt is none: nothing that goes on after a failure may go on after this.
    """


def exit_code(verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a verb and turns its failures into a message on standard error and an exit code.

    Anything else that a verb raises is a fault of the program: its traceback is left to Python, which ends
    with exit code 1.
    """
    try:
        return verb(arguments)
    except InputError as error:
        print(f"jaxpneumo: {error}", file=sys.stderr)
        return BAD_INPUT
    except TrainingError as error:
        print(f"jaxpneumo: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        print(f"jaxpneumo: {where}. What was finished is kept; make room and repeat the command.", file=sys.stderr)
        return FAILED
    except Stopped:
        print("jaxpneumo: stopped by a signal, all is saved; the same command goes on.", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("jaxpneumo: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
