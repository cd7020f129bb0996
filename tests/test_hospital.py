"""docs/hospital.md and its compose file: what they say of partners, titles, addresses and options is understood."""

import json
import re

import pytest
import yaml
from helpers import REPOSITORY
from pydicom import dcmread

from jaxpneumo.predict.dicom_results import KINDS
from jaxpneumo.process.errors import InputError
from jaxpneumo.serve import listen
from jaxpneumo.serve.partners import read_partners

PAGE = (REPOSITORY / "docs/hospital.md").read_text()
COMPOSE = yaml.safe_load((REPOSITORY / "launch/hospital.compose.yaml").read_text())
LISTENER = COMPOSE["services"]["listener"]


def block(language: str) -> str:
    """The first block of code of the page in a language, without its indentation."""
    found = re.search(rf"^( *)```{language}\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return re.sub(rf"^{found[1]}", "", found[2], flags=re.MULTILINE)


@pytest.fixture(params=["page", "compose"])
def setup(request):
    """Partners, Orthanc's configuration, its routing rule, and the listener's title and address."""
    if request.param == "page":
        return block("toml"), json.loads(block("json")), block("lua"), ["JAXPNEUMO", "127.0.0.1", 11112]
    texts = {name: each["content"] for name, each in COMPOSE["configs"].items()}
    options = dict(option.lstrip("-").split("=") for option in LISTENER["command"][1:])
    address = [options["title"], options["host"], int(options["port"])]
    return texts["partners"], json.loads(texts["orthanc"]), texts["routing"], address


def test_the_listener_and_orthanc_know_each_other(setup, tmp_path):
    partners, orthanc, routing, address = setup
    (tmp_path / "partners.toml").write_text(partners)
    known = read_partners(tmp_path / "partners.toml", KINDS)
    (archive,) = known.destinations
    assert orthanc["DicomModalities"]["listener"] == address
    assert known.knows(orthanc["DicomAet"], archive.address), "the archive may send"
    assert (archive.title, archive.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    assert (orthanc["DicomCheckCalledAet"], orthanc["DicomAlwaysAllowStore"]) == (True, False)
    assert f"origin['RemoteAet'] ~= '{address[0]}'" in routing, "results do not come back to the listener"


def test_both_have_the_rule_that_is_tested_beside_orthanc():
    """tests/test_orthanc.py reads it from the page."""
    rule = COMPOSE["configs"]["routing"]["content"]
    assert rule[rule.index("function") :].split() == block("lua").split()


def test_the_options_of_the_containers_command_are_understood(tmp_path, monkeypatch):
    assert LISTENER["command"][0] == "listen"
    seen = []
    monkeypatch.setattr(listen, "serve", lambda settings, *_: seen.append(settings))
    (tmp_path / "partners.toml").write_text(COMPOSE["configs"]["partners"]["content"])
    moved = {"--partners": tmp_path / "partners.toml", "--spool": tmp_path / "spool"}
    options = [option.split("=") for option in LISTENER["command"][1:]]
    listen.main([f"{name}={moved.get(name, value)}" for name, value in options])
    assert (seen[0].title, seen[0].host, seen[0].port) == ("JAXPNEUMO", "172.28.0.3", 11112)
    assert f"127.0.0.1:{seen[0].health_port}/health" in LISTENER["healthcheck"]["test"][-1]
    assert COMPOSE["services"]["listener"]["networks"]["hospital"]["ipv4_address"] == seen[0].host
    mounted = {config["source"]: config["target"] for config in LISTENER["configs"]}
    assert f"--partners={mounted['partners']}" in LISTENER["command"]


def test_ports_are_published_on_the_loopback_interface_alone():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_a_report_refers_to_no_segmentation_that_one_of_its_archives_does_not_get(
    evaluated, radiographs, tmp_path, monkeypatch
):
    both = block("toml")
    report_alone = both[both.index("[destinations.archive]") :].replace("archive]", "other]").replace(', "seg"', "")
    assert '["sr"]' in report_alone
    (tmp_path / "one.toml").write_text(both)
    (tmp_path / "two.toml").write_text(f"{both}\n{report_alone}")
    seen = []
    monkeypatch.setattr(listen, "serve", lambda _settings, _partners, make, arguments: seen.append((make, arguments)))
    for partners in ("one", "two"):
        given = ["--workdir", str(evaluated), "--spool", str(tmp_path / "spool")]
        listen.main([*given, "--partners", str(tmp_path / f"{partners}.toml")])
    (make, (*_, of_one)), (_, (*others, of_two)) = seen
    assert (of_one, of_two) == (["seg", "sr"], ["sr"])
    look = make(*others, of_two)
    paths, into = iter(sorted((radiographs / "dicom").rglob("*.dcm"))), tmp_path / "results"
    while not (into / "seg.dcm").exists():
        look(next(paths), into)
    assert dcmread(into / "seg.dcm").SOPInstanceUID.encode() not in (into / "sr.dcm").read_bytes()


class TestProblemsAreSaidBeforeAnythingIsBound:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--title", "A TITLE THAT IS LONG"], "--title: 'A TITLE THAT IS LONG' is no AE title"),
            (["--partners", "none.toml"], "none.toml cannot be read"),
            (["--port", "70000"], "--port: 70000 cannot be used; give a whole number from 0 to 65535"),
            (["--least-free", "-1"], "--least-free: -1 cannot be used"),
            (["--weights", "1,2"], "2 weights for 1 runs"),
        ],
    )
    def test_of_options(self, options, words, tmp_path, monkeypatch):
        monkeypatch.setattr(listen, "serve", lambda *_: pytest.fail("it serves"))
        (tmp_path / "partners.toml").write_text(block("toml"))
        given = ["--workdir", str(tmp_path), "--spool", str(tmp_path / "spool")]
        with pytest.raises(InputError) as caught:
            listen.main([*given, "--partners", str(tmp_path / "partners.toml"), *options])
        assert words in str(caught.value)
        assert not (tmp_path / "spool").exists()
