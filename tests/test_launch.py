"""`launch/`: the scripts do what their heads say, and the manifests say what the program understands."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY

from jaxpneumo.__main__ import VERBS
from jaxpneumo.process.errors import BAD_INPUT, PARTIAL, STOPPED

LAUNCH = REPOSITORY / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
SBATCH = LAUNCH / "slurm.sbatch"


def test_everything_is_looked_at():
    assert {path.name for path in LAUNCH.iterdir()} == {
        *(path.name for path in SHELL),
        "Dockerfile",  # tests/test_dockerfile.py
        "Dockerfile.dockerignore",
        "hospital.compose.yaml",  # tests/test_hospital.py
        "kubernetes.yaml",
        "kubernetes_parts.yaml",
    }


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()
    assert subprocess.run(["bash", script, "--help"], capture_output=True, cwd=REPOSITORY, check=False).returncode == 2
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)


def command(path: Path, text: str) -> None:
    """A small program of that name."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


class TestSlurm:
    @pytest.fixture
    def submit(self, tmp_path):
        """Runs the job as Slurm would, with commands of its names that note how they were called."""
        command(tmp_path / "bin/srun", f'printf "%s\\n" "$@" > {tmp_path}/srun; exit "${{ENDS:-0}}"')
        command(tmp_path / "bin/scontrol", f'echo "$@" >> {tmp_path}/scontrol')

        def submit(*arguments, ends=0, **environment):
            environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ENDS": str(ends)} | environment
            environment |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "77"}
            done = subprocess.run(["bash", SBATCH, *arguments], env=environment, capture_output=True, check=False)
            return done.returncode, (tmp_path / "srun").read_text().splitlines()

        return submit

    def test_runs_the_verb(self, submit):
        code, called = submit("train", "--config=configs/exp5.py", "--workdir=a b")
        assert code == 0
        assert called[1:] == ["python", "-m", "jaxpneumo", "train", "--config=configs/exp5.py", "--workdir=a b"]

    def test_array_tasks_have_their_number(self, submit):
        _, called = submit("train", "--config.data.fold=%a", "--workdir=fold%a", SLURM_ARRAY_TASK_ID="3")
        assert called[-2:] == ["--config.data.fold=3", "--workdir=fold3"]

    def test_a_stopped_job_is_put_into_the_queue_again(self, submit, tmp_path):
        assert submit("train", ends=STOPPED)[0] == STOPPED
        assert (tmp_path / "scontrol").read_text() == "requeue 77\n"

    @pytest.mark.parametrize(("ends", "code"), [(1, 1), (BAD_INPUT, BAD_INPUT), (PARTIAL, 0), (137, 137)])
    def test_other_ends_are_not(self, submit, tmp_path, ends, code):
        assert submit("predict", ends=ends)[0] == code
        assert not (tmp_path / "scontrol").exists()

    def test_asks_for_the_signal_and_for_requeueing(self):
        options = [line.removeprefix("#SBATCH ") for line in SBATCH.read_text().splitlines() if line[:7] == "#SBATCH"]
        assert {"--requeue", "--signal=TERM@120", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)

    def test_examples_name_verbs_and_configs_that_are_there(self):
        head = SBATCH.read_text().split("#SBATCH")[0].replace("\\\n#", " ")
        calls = [
            line.split("launch/slurm.sbatch", 1)[1] for line in head.splitlines() if "launch/slurm.sbatch " in line
        ]
        assert len(calls) == 5
        for call in calls:
            verb, *arguments = shlex.split(call.rstrip(")"))
            assert verb in VERBS
            for argument in arguments:
                if argument.startswith("--config="):
                    assert (REPOSITORY / argument.removeprefix("--config=")).is_file()


def documents(name):
    """The objects of a manifest by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((LAUNCH / name).read_text())}


class TestKubernetes:
    @pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes_parts.yaml"])
    def test_stopped_pods_do_not_count_and_wrong_use_fails(self, name):
        spec = documents(name)["Job"]["spec"]
        pod = spec["template"]["spec"]
        rules = {rule["onExitCodes"]["values"][0]: rule for rule in spec["podFailurePolicy"]["rules"][::2]}
        assert {code: rule["action"] for code, rule in rules.items()} == {STOPPED: "Ignore", BAD_INPUT: "FailJob"}
        assert spec["podFailurePolicy"]["rules"][1]["onPodConditions"] == [{"type": "DisruptionTarget"}]
        (container,) = pod["containers"]
        assert {rule["onExitCodes"]["containerName"] for rule in rules.values()} == {container["name"]}
        assert all(rule["onExitCodes"]["operator"] == "In" for rule in rules.values())
        # Kubernetes takes a podFailurePolicy only with this.
        assert pod["restartPolicy"] == "Never"
        assert spec["completionMode"] == "Indexed"
        assert pod["terminationGracePeriodSeconds"] >= 60
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}

    def test_pods_find_each_other(self):
        service, job = documents("kubernetes.yaml").values()
        spec, name = job["spec"], job["metadata"]["name"]
        pod = spec["template"]["spec"]
        environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        assert spec["completions"] == spec["parallelism"] == int(environment["JAX_NUM_PROCESSES"])
        host, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
        # An Indexed Job calls its pods NAME-INDEX, below the headless service that selects them.
        assert host == f"{name}-0.{service['metadata']['name']}"
        assert pod["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == {"job-name": name}
        assert 1024 < int(port) < 65536

    def test_training_is_a_command_of_ours(self):
        container = documents("kubernetes.yaml")["Job"]["spec"]["template"]["spec"]["containers"][0]
        assert container["command"] == ["python", "-m", "jaxpneumo"]
        verb, config, *_ = container["args"]
        assert verb in VERBS
        assert (REPOSITORY / config.removeprefix("--config=")).is_file()

    def test_all_parts_are_asked_for(self):
        spec = documents("kubernetes_parts.yaml")["Job"]["spec"]
        script = spec["template"]["spec"]["containers"][0]["args"][0]
        assert f"--num-parts {spec['completions']} --part-id auto" in script

    @pytest.mark.parametrize(("ends", "code"), [(0, 0), (1, 1), (BAD_INPUT, BAD_INPUT), (PARTIAL, 0)])
    def test_exit_codes_of_a_part(self, tmp_path, ends, code):
        assert self.start(tmp_path, f"exit {ends}").wait(60) == code

    def test_a_part_is_told_to_end(self, tmp_path):
        part = self.start(tmp_path, f"trap 'exit {STOPPED}' TERM; touch {tmp_path}/ready; sleep 60 & wait")
        while not (tmp_path / "ready").exists():
            assert part.poll() is None
            time.sleep(0.05)
        part.send_signal(signal.SIGTERM)
        assert part.wait(60) == STOPPED

    @staticmethod
    def start(tmp_path, program):
        """A pod's own command, with another program in the place of ours."""
        command(tmp_path / "bin/python", program)
        container = documents("kubernetes_parts.yaml")["Job"]["spec"]["template"]["spec"]["containers"][0]
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return subprocess.Popen([*container["command"], *container["args"]], env=environment, cwd=tmp_path)
