"""The failures that have a message for the user, and the exit codes of every verb.

0 done, 2 wrong use or bad input, 3 partial (some inputs were set aside), 75 stopped by a signal after saving,
1 failure.
"""

import errno
import logging
import sys
from collections.abc import Callable, Sequence

DONE, FAILED, BAD_INPUT, PARTIAL = 0, 1, 2, 3
# sysexits.h's EX_TEMPFAIL: try again later
STOPPED = 75

GO_ON = "Give the same command again; train, prepare and predict go on where they stopped."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN)
_PLACE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL),
)
logger = logging.getLogger(__name__)


class InputError(ValueError):
    """Wrong use or bad input; the message says what to do about it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class CheckError(RuntimeError):
    """What was made does not do what it has to, and is not kept; the message says how far it is off."""


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
    except (TrainingError, CheckError) as error:
        print(f"jaxpneumo: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        return tell(error)
    except Stopped:
        print("jaxpneumo: stopped by a signal, all is saved; the same command goes on.", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print(f"jaxpneumo: interrupted. {GO_ON}", file=sys.stderr)
        return 130


def tell(error: OSError) -> int:
    """Says in words that a disk is full or a path cannot be used, and returns the exit code.

    Any other is raised: nothing that a user could act on. With --verbose the log shows where it happened.
    """
    where = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in _FULL:
        code, advice = FAILED, f"Make room. {GO_ON}"
    elif error.errno in _BROKEN:
        code, advice = FAILED, f"The disk or the network drive failed. When it works again: {GO_ON}"
    elif error.errno in _PLACE and error.filename:
        code, advice = BAD_INPUT, "Put this path right or choose another; --verbose shows where it was needed."
    else:
        raise error
    logger.debug("where it happened", exc_info=error)
    print(f"jaxpneumo: {where}. {advice}", file=sys.stderr)
    return code
