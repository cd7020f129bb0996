"""launch/Dockerfile as far as it can be checked without Docker: stages, what is copied, user, and who names the image.

The build itself needs Docker and the network, and is not run here.
"""

import re
import shlex
import tomllib

import pytest
import yaml
from helpers import REPOSITORY

LAUNCH = REPOSITORY / "launch"
TEXT = (LAUNCH / "Dockerfile").read_text()
IGNORED = (LAUNCH / "Dockerfile.dockerignore").read_text().split("\n")
ORDERS = {"FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT"}


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions (word, rest) and before them those of the stage that it builds on."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n", "", TEXT).split("\n"):
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        assert word in ORDERS
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, [("FROM", base)]))
        else:
            found[name].append((word, rest))
    return found


def only(stage: str, word: str) -> list[str]:
    return [rest for each, rest in stages()[stage] if each == word]


def test_the_base_is_pinned_and_is_a_python_that_the_package_takes():
    (base,) = only("base", "FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, base.split(":")[1].split(".")[:2])) >= least


def test_every_copied_path_is_there_and_is_sent_to_the_build():
    copied = [path for rest in only("base", "COPY") for path in shlex.split(rest)[:-1]]
    assert {"pyproject.toml", "jaxpneumo", "configs"} <= set(copied)
    assert all((REPOSITORY / path).exists() for path in copied)
    assert IGNORED[1] == "*"
    assert {line[1:] for line in IGNORED if line.startswith("!")} == set(copied)
    # jaxpneumo/configs is a link, which leads to the same place in the image.
    assert (REPOSITORY / "jaxpneumo/configs").resolve() == REPOSITORY / "configs"
    targets = [shlex.split(rest)[-1] for rest in only("base", "COPY")]
    assert targets == ["/opt/jaxpneumo/", "/opt/jaxpneumo/configs", "/opt/jaxpneumo/jaxpneumo"]


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_installs_the_package_and_runs_its_command_as_a_user(stage):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (install,) = [rest for rest in only(stage, "RUN") if rest.startswith("pip")]
    extras = set(re.search(r"\[(.*)\]", install)[1].split(","))
    assert extras <= set(project["optional-dependencies"])
    assert {"dicom", "serve", "export"} <= extras
    assert ("cuda12" in extras) == (stage == "cuda")
    assert only(stage, "ENTRYPOINT") == ['["jaxpneumo"]']
    assert "jaxpneumo" in project["scripts"]
    (user,), (folder,) = only(stage, "USER"), only(stage, "WORKDIR")
    assert int(user) > 0
    assert any(f"--owner={user}" in rest and folder in rest.split() for rest in only(stage, "RUN"))
    assert stages()[stage][-2:] == [("USER", user), ("ENTRYPOINT", '["jaxpneumo"]')]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes_parts.yaml"])
def test_pods_run_as_the_images_user(name):
    (user,) = map(int, only("cuda", "USER"))
    (job,) = [each for each in yaml.safe_load_all((LAUNCH / name).read_text()) if each["kind"] == "Job"]
    context = job["spec"]["template"]["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "runAsUser": user, "fsGroup": user}


def test_the_listeners_volume_belongs_to_the_images_user():
    """A named volume takes over the owner of the folder that it is mounted on."""
    compose = yaml.safe_load((LAUNCH / "hospital.compose.yaml").read_text())
    named = [each.split(":")[1] for each in compose["services"]["listener"]["volumes"] if not each.startswith(".")]
    owned = next(rest for rest in only("cpu", "RUN") if "--owner" in rest).split()
    assert named == ["/spool"]
    assert set(named) <= set(owned)


def test_no_secret_is_in_it():
    assert not re.search(r"password|token|secret\b|://", TEXT.lower())
    assert not re.search(r"^ARG ", TEXT, re.MULTILINE)


def images_of(value) -> set[str]:
    """The values of all keys `image` in a manifest."""
    if isinstance(value, dict):
        own = {value["image"]} if isinstance(value.get("image"), str) else set()
        return own.union(*map(images_of, value.values()))
    return set().union(*map(images_of, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes_parts.yaml", "hospital.compose.yaml"])
def test_manifests_name_the_image_that_the_dockerfile_makes(name):
    made = set(re.findall(r"docker build \S+ \S+ --target \w+ -t (\S+) \.", TEXT))
    assert len(made) == 2
    named = set().union(*(images_of(each) for each in yaml.safe_load_all((LAUNCH / name).read_text())))
    assert {image for image in named if "jaxpneumo" in image} <= made
    assert named & made
