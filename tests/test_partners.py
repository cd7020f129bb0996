"""The file of partners: everything in it is checked before anything is bound, and all problems are said at once."""

import shutil
import ssl
import subprocess

import pytest

from jaxpneumo.process.errors import InputError
from jaxpneumo.serve.partners import read_partners

RESULTS = ("sr", "seg", "presentation", "capture")
WHOLE = """
[peers.PACS]
addresses = ["10.0.0.5", "10.1.0.0/16", "fd00::/8"]

[destinations.archive]
kind = "dicom"
address = "10.0.0.5"
port = 4242
title = "PACS"
results = ["sr", "seg"]

[destinations.web]
kind = "dicomweb"
url = "https://pacs.example.org/dicom-web/"
results = ["presentation"]
credentials = "web.credentials"
"""


@pytest.fixture
def read(tmp_path):
    (tmp_path / "web.credentials").write_text("user:password")
    (tmp_path / "latin.credentials").write_text("user:Schlüssel", encoding="latin-1")

    def read(text: str):
        (tmp_path / "partners.toml").write_text(text)
        return read_partners(tmp_path / "partners.toml", RESULTS)

    return read


def test_a_whole_file(read, tmp_path):
    partners = read(WHOLE)
    archive, web = partners.destinations
    assert (archive.name, archive.kind, archive.address, archive.port) == ("archive", "dicom", "10.0.0.5", 4242)
    assert (archive.title, archive.results, archive.tls) == ("PACS", ("sr", "seg"), None)
    assert (web.url, web.credentials) == ("https://pacs.example.org/dicom-web", tmp_path / "web.credentials")


@pytest.mark.parametrize(
    ("title", "address", "known"),
    [
        *(("PACS", "10.0.0.5", True), ("PACS", "10.0.0.6", False), ("OTHER", "10.0.0.5", False)),
        *(("PACS", "10.1.7.9", True), ("PACS", "::ffff:10.0.0.5", True), ("PACS", "fd00::1", True)),
        *(("PACS", "fe80::1", False), ("PACS", "no address", False)),
    ],
)
def test_who_may_send(read, title, address, known):
    assert read(WHOLE).knows(title, address) == known
    assert read(WHOLE).knows_address(address) == (known or title == "OTHER")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'kind = "dicom"\n',
            'kind = "ftp"\n',
            """[destinations.archive] kind must be "dicom" or "dicomweb", not 'ftp'""",
        ),
        ("port = 4242", "port = 0", "port must be a whole number from 1 to 65535, not 0"),
        ("port = 4242\n", "", "[destinations.archive] needs port"),
        ("port = 4242", "prot = 4242", 'prot is not known. Did you mean "port"?'),
        ('title = "PACS"', 'title = "A TITLE THAT IS TOO LONG"', "is no AE title"),
        ("[peers.PACS]", '[peers."A\\\\B"]', "is no AE title"),
        ('"10.0.0.5", "10.1', '"pacs", "10.1', "'pacs' is no IP address or network"),
        ('["sr", "seg"]', '["sr", "segmentation"]', "results must be a list of sr, seg, presentation, capture"),
        ('["sr", "seg"]', '"sr"', "results must be a list"),
        ("https://pacs", "ftp://pacs", "is no address such as"),
        ('address = "10.0.0.5"', 'address = "pacs..example.org"', "must be a host's name or IP address"),
        ('address = "10.0.0.5"', f'address = "{"a" * 70}"', "must be a host's name or IP address"),
        ("https://pacs.", "https://pacs..", "is no address such as"),
        ("web.credentials", "latin.credentials", "latin.credentials is not UTF-8 text"),
        ("https://pacs", "https://me:secret@pacs", "must not hold a user or password"),
        ("web.credentials", "none", "none cannot be read (No such file or directory)"),
        ("[destinations.web]", "[destinations.results]", "needs another name"),
        ("[destinations.web]", '[destinations."../x"]', "needs another name"),
        ("[peers.PACS]", "[peer.PACS]", 'peer is not known. Did you mean "peers"?'),
        ("[peers.PACS]", "[[peers]]", "it has no [peers.NAME]"),
        (WHOLE[1:], "", "it has no [peers.NAME]; it has no [destinations.NAME]"),
        ("[peers.PACS]", "[peers", "is not valid TOML"),
        (WHOLE, f'{WHOLE}[tls]\ncertificate = "a"\n', "needs key for TLS"),
    ],
)
def test_what_cannot_be_used_is_said(read, old, new, words):
    assert old in WHOLE
    with pytest.raises(InputError) as caught:
        read(WHOLE.replace(old, new, 1))
    assert words in str(caught.value)


def test_all_problems_are_said_together(read):
    with pytest.raises(InputError) as caught:
        read(WHOLE.replace("4242", "-1").replace('"10.0.0.5", "10', '"x", "10').replace("https", "gopher"))
    assert all(words in str(caught.value) for words in ("port must be", "no IP address", "no address such as"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        *(("http://pacs.example.org", True), ("http://10.0.0.7:8042", True), ("https://pacs.example.org", False)),
        *(("http://127.0.0.1:8042", False), ("http://localhost:8042", False), ("http://[::1]:8042", False)),
    ],
)
def test_credentials_in_the_clear_are_warned_of(read, caplog, url, told):
    read(WHOLE.replace("https://pacs.example.org", url))
    assert ("[destinations.web] the credentials go to" in caplog.text) == told
    assert "password" not in caplog.text


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_partners(tmp_path / "none.toml", RESULTS)


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path):
        if not (openssl := shutil.which("openssl")):
            pytest.skip("openssl, which makes the certificates, is not installed")
        line = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=listener", "-days", "2"]
        files = ["-keyout", tmp_path / "a.key", "-out", tmp_path / "a.pem"]
        subprocess.run([*line, *files], check=True, capture_output=True)

    def test_files_are_tried(self, read, certificate):
        partners = read(f'{WHOLE}[tls]\ncertificate = "a.pem"\nkey = "a.key"\nauthorities = "a.pem"\n')
        assert partners.tls is not None
        context = partners.tls.server()
        assert context.verify_mode == ssl.CERT_REQUIRED, "clients must show a certificate"
        archive = WHOLE.replace('title = "PACS"', 'title = "PACS"\nauthorities = "a.pem"')
        tls = read(archive).destinations[0].tls
        assert tls is not None
        assert tls.client().check_hostname

    def test_need_an_encrypted_service(self, read, certificate):
        with pytest.raises(InputError, match=r"\[destinations.web\] authorities needs an https:// url"):
            read(f'{WHOLE.replace("https", "http")}authorities = "a.pem"\n')

    def test_files_that_are_none(self, read, certificate, tmp_path):
        (tmp_path / "b.key").write_text("no key")
        with pytest.raises(InputError, match=r"b\.key.* cannot be used for TLS"):
            read(f'{WHOLE}[tls]\ncertificate = "a.pem"\nkey = "b.key"\nauthorities = "a.pem"\n')
