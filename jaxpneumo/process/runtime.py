"""How a process that computes is set up, before JAX starts: memory pages, XLA's flags, the store of compiled programs.

Also what libraries may say and how many threads they have. No module of this package changes its process when it is
imported: the command does, what starts a worker process, and what needs it.

Everything here is a default: a variable that the environment already has is left as it is, and a flag that
XLA_FLAGS already names keeps its value.

XLA flags, by backend (`XLA_FLAGS`; measured with ResNet34-UNet on two cores of an AMD EPYC: docs/performance.md)

- CPU, `ynn_fusion_type=-individual_convolution`: convolutions by Eigen or oneDNN instead of YNNPACK. A float32
  training step at 256 takes 0.77 of the time.
- CPU, `onednn_custom_call` (jaxlib 0.12, where it works): convolutions by oneDNN, in float32 prediction 1.3 times as
  fast as by Eigen, in bfloat16 another 1.7 times with AVX-512 and more with AMX. XLA cannot store such a program, so
  that every process compiles it anew.
- CPU with several devices or processes, `concurrency_optimized_scheduler=false`: otherwise each device starts sums over
  all devices in an order of its own, and two of them may wait for each other until XLA ends the process.
- GPU, `exclude_nondeterministic_ops`: equal runs give equal bits; scatters and reductions keep one order.

An unknown flag ends the process in XLA, so flags that are not part of its stable interface are given to the
versions only that they were tried with.
"""

import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"

# first and last (not included) jaxlib version, flag
_FLAGS = (
    ((0, 10), (0, 13), "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
    ((0, 12), (0, 13), "--xla_cpu_experimental_onednn_custom_call=true"),
    ((0, 10), (0, 13), "--xla_gpu_exclude_nondeterministic_ops=true"),
)
_FLAGS_OF_SEVERAL = (((0, 10), (0, 13), "--xla_cpu_enable_concurrency_optimized_scheduler=false"),)


def prepare_process() -> None:
    """Sets the defaults; on Linux it may start this very command anew, once. To be called before JAX is imported.

    Nothing is started anew where the C library is not glibc, or where the environment sets GLIBC_TUNABLES.
    """
    prepare_jax()
    if _TUNABLES not in os.environ and platform.libc_ver()[0] == "glibc":
        # XLA takes the memory for a call's results anew for every call. In pages of 4 KiB this costs a step more
        # than a fifth of its time; glibc reads how it asks for pages when a process starts and never again.
        os.environ[_TUNABLES] = _HUGE_PAGES
        if sys.stdout is not None:
            sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    one_thread_each()


def prepare_jax() -> None:
    """Sets the defaults that decide how JAX compiles. They hold if JAX has not computed anything yet."""
    # Programs with oneDNN's convolutions cannot be stored (above): nothing that a user could act on.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .* MemoryError", UserWarning)
    os.environ["XLA_FLAGS"] = xla_flags(os.environ.get("XLA_FLAGS", ""), jaxlib_version())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def quiet_libraries() -> None:
    """Silences warnings that must not be seen: pydicom's quote values of headers, and those may be a patient's.

    Whatever reads DICOM calls it before each file, since the filters of warnings come and go with
    `warnings.catch_warnings`. A second call changes nothing.
    """
    warnings.filterwarnings("ignore", module="pydicom")
    log = logging.getLogger("pydicom")
    if log.level != logging.CRITICAL:
        log.setLevel(logging.CRITICAL)


def one_thread_each() -> None:
    """Keeps OpenCV to the thread that calls it, in this whole process.

    Where images are worked on in several threads or processes at once, threads of its own in each of them would only
    compete for the same cores.
    """
    import cv2  # here: most verbs do without it until they begin

    cv2.setNumThreads(1)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for the time of the block, for what a library reads when it is imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def xla_flags(given: str, version: tuple[int, ...]) -> str:
    """XLA_FLAGS for a jaxlib version, with the flags that are given already first.

    Args:
      given: the variable's value; a flag that it names is not added.
      version: of jaxlib, (0, 12, 0) for 0.12.0.
    """
    names = {flag.split("=")[0] for flag in given.split()}
    several = "--xla_force_host_platform_device_count" in names or "JAX_COORDINATOR_ADDRESS" in os.environ
    flags = (*_FLAGS, *_FLAGS_OF_SEVERAL) if several else _FLAGS
    added = [flag for first, end, flag in flags if first <= version < end and flag.split("=")[0] not in names]
    return " ".join([*given.split(), *added])


def cache_directory() -> Path:
    """Where compiled programs are kept between processes: ~/.cache/jaxpneumo, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpneumo" / "compiled"


def jaxlib_version() -> tuple[int, ...]:
    """The installed jaxlib's version, without importing it."""
    return tuple(int(part) for part in metadata.version("jaxlib").split(".")[:3] if part.isdigit())
