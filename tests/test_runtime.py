"""How a process is set up before JAX starts."""

import os
import subprocess
import sys

import pytest

from jaxpneumo.process import runtime

PROBE = """
import os, sys
from jaxpneumo.process.runtime import prepare_process
prepare_process()
import jax, jax.numpy as jnp
jax.jit(jnp.sin)(1.0).block_until_ready()
print(os.getpid(), sys.argv[1:], os.environ["GLIBC_TUNABLES"], jax.config.jax_compilation_cache_dir)
"""


def _probe(tmp_path, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment |= {"XDG_CACHE_HOME": str(tmp_path), **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", PROBE, "a b", "--c=d"], env=environment, stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return process.pid, output


def test_the_flags_are_known_to_this_xla_and_the_command_stays_the_same_process(tmp_path):
    pid, output = _probe(tmp_path)
    assert output.split()[0] == str(pid)
    assert "['a b', '--c=d']" in output
    assert "glibc.malloc.hugetlb=1" in output
    assert output.rstrip().endswith(str(tmp_path / "jaxpneumo" / "compiled"))


def test_what_the_environment_says_is_kept(tmp_path):
    _, output = _probe(tmp_path, GLIBC_TUNABLES="glibc.malloc.perturb=0", JAX_COMPILATION_CACHE_DIR="elsewhere")
    assert "glibc.malloc.perturb=0 elsewhere" in output


@pytest.mark.parametrize(
    ("version", "count"), [((0, 9, 1), 0), ((0, 10, 2), 2), ((0, 11, 0), 2), ((0, 12, 0), 3), ((0, 13, 0), 0)]
)
def test_flags_are_given_only_to_versions_they_were_tried_with(version, count):
    assert len(runtime.xla_flags("", version).split()) == count


@pytest.mark.parametrize("version", [(0, 10, 2), (0, 12, 0)])
def test_several_devices_of_a_cpu_sum_in_one_order(version, monkeypatch):
    """Each in its own order, two sums over all devices may wait for each other for ever."""
    one_order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert one_order not in runtime.xla_flags("", version)
    assert one_order in runtime.xla_flags("--xla_force_host_platform_device_count=2", version)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    assert one_order in runtime.xla_flags("", version)


def test_a_flag_that_is_given_already_keeps_its_value():
    given = "--xla_dump_to=x --xla_cpu_experimental_onednn_custom_call=false"
    flags = runtime.xla_flags(given, (0, 12, 0)).split()
    assert flags[:2] == given.split()
    assert sum("onednn" in flag for flag in flags) == 1
