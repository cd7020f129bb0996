"""The listener's partners, in one small TOML file: who may send radiographs, and where results go.

    [peers.PACS]                       # an AE title that may send ...
    addresses = ["10.0.0.5"]           # ... from these addresses or networks ("10.0.0.0/24")

    [destinations.archive]             # a name for folders, log and metrics
    kind = "dicom"                     # C-STORE
    address = "10.0.0.5"
    port = 4242
    title = "PACS"                     # its AE title
    results = ["sr", "seg"]

    [destinations.web]
    kind = "dicomweb"                  # STOW-RS
    url = "https://pacs.example.org/dicom-web"
    results = ["presentation"]
    credentials = "web.credentials"    # a file with user:password, or with a token; optional

    [tls]                              # optional: the listener then takes TLS connections alone
    certificate = "listener.pem"
    key = "listener.key"
    authorities = "hospital-ca.pem"    # the senders' certificates must be signed by these

A destination of kind "dicom" with `authorities`, and if asked for `certificate` and `key`, is sent to over TLS; one of
kind "dicomweb" may have them too. Files are beside this one unless their path is absolute.
"""

import ipaddress
import logging
import re
import ssl
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jaxpneumo.process.errors import InputError
from jaxpneumo.process.ranges import did_you_mean, whole

logger = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PORT = whole(1, 65535)
TLS_KEYS = ("certificate", "key", "authorities")
# What a destination's table may hold; True stands for what it must hold.
KINDS: dict[str, dict[str, bool]] = {
    "dicom": {"address": True, "port": True, "title": True, "results": True, **dict.fromkeys(TLS_KEYS, False)},
    "dicomweb": {"url": True, "results": True, "credentials": False, **dict.fromkeys(TLS_KEYS, False)},
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1"))
TAKEN = ("results",)  # a destination's folder lies beside this one


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection, PEM; None: not given."""

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None

    def server(self) -> ssl.SSLContext:
        """For who listens: clients have to show a certificate signed by the authorities."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        """For who connects: the other's certificate and name are checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.authorities:
            context.load_verify_locations(self.authorities)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)


@dataclass(frozen=True)
class Destination:
    """Where results go.

    Attributes:
      name: for folders, log and metrics.
      kind: "dicom" or "dicomweb".
      results: the kinds of results that it gets.
      address, port, title: of a DICOM node.
      url: of a DICOMweb service, without a slash at its end.
      credentials: a file, or None.
      tls: files of its connection; for "dicom", None is a connection without TLS.
    """

    name: str
    kind: str
    results: tuple[str, ...]
    address: str = ""
    port: int = 0
    title: str = ""
    url: str = ""
    credentials: Path | None = None
    tls: Tls | None = None


@dataclass(frozen=True)
class Partners:
    """Who may send and where results go.

    Attributes:
      peers: by AE title, the networks that it may call from.
      destinations: at least one.
      tls: of the listener, or None.
    """

    peers: Mapping[str, tuple[Network, ...]]
    destinations: tuple[Destination, ...]
    tls: Tls | None = None

    def knows_address(self, address: str) -> bool:
        """Whether any peer may call from an address."""
        return any(_lies_in(address, networks) for networks in self.peers.values())

    def knows(self, title: str, address: str) -> bool:
        """Whether the peer of a title may call from an address."""
        return _lies_in(address, self.peers.get(title, ()))


def read_partners(path: Path, results: Collection[str]) -> Partners:
    """Reads and checks the file.

    Args:
      path: of the TOML file.
      results: the kinds of results there are.

    Raises:
      InputError: the file cannot be read, or something in it cannot be used. The message has all problems.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error
    problems: list[str] = []
    _check_names(table, ("peers", "destinations", "tls"), "", problems)
    peers = {title: _networks(title, peer, problems) for title, peer in _tables(table, "peers", problems)}
    destinations = [
        _destination(name, one, results, path.parent, problems)
        for name, one in _tables(table, "destinations", problems)
    ]
    tls = None
    if "tls" in table:
        tls = _tls("[tls]", table["tls"], TLS_KEYS, path.parent, problems, Tls.server)
    if problems:
        raise InputError(f"{path} cannot be used: {'; '.join(problems)}. docs/hospital.md has a complete example.")
    return Partners(peers, tuple(destinations), tls)


def title_problem(title: Any) -> str:
    """Why a text cannot be an AE title (DICOM PS3.5 6.2), in words; "" if it can."""
    usable = isinstance(title, str) and re.fullmatch(r"[ -\[\]-~]{1,16}", title) and title == title.strip() != ""
    return "" if usable else f"{title!r} is no AE title: 1 to 16 ASCII characters without backslash or outer blanks"


def _tables(table: Mapping[str, Any], name: str, problems: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables below [name.*], of which there has to be one."""
    found = table.get(name, {})
    if not isinstance(found, dict) or not found:
        problems.append(f"it has no [{name}.NAME]")
        return []
    wrong = [key for key, value in found.items() if not isinstance(value, dict)]
    problems += [f"{name}.{key} is not a table [{name}.{key}]" for key in wrong]
    return [(key, value) for key, value in found.items() if key not in wrong]


def _networks(title: str, peer: Mapping[str, Any], problems: list[str]) -> tuple[Network, ...]:
    where = f"[peers.{title}]"
    _check_names(peer, ("addresses",), where, problems)
    if problem := title_problem(title):
        problems.append(f"{where} {problem}")
    addresses = peer.get("addresses")
    if not isinstance(addresses, list) or not addresses:
        problems.append(f'{where} needs addresses = ["10.0.0.5"], the addresses or networks that it calls from')
        return ()
    networks = []
    for address in addresses:
        try:
            networks.append(ipaddress.ip_network(str(address), strict=False))
        except ValueError:
            problems.append(f"{where} addresses: {address!r} is no IP address or network")
    return tuple(networks)


def _destination(
    name: str, table: Mapping[str, Any], results: Collection[str], folder: Path, problems: list[str]
) -> Destination:
    where = f"[destinations.{name}]"
    if not _NAME.fullmatch(name) or name in TAKEN:
        problems.append(f"{where} needs another name: small letters, digits, - and _, and not results")
    kind = table.get("kind")
    if kind not in KINDS:
        problems.append(f'{where} kind must be "dicom" or "dicomweb", not {kind!r}')
        return Destination(name, "", ())
    keys, before = KINDS[kind], len(problems)
    _check_names(table, ("kind", *keys), where, problems)
    checks = {"address": _address_problem, "port": _port_problem, "title": title_problem, "url": url_problem}
    checks["results"] = partial(_results_problem, known=results)
    for key, needed in keys.items():
        if needed and key not in table:
            problems.append(f"{where} needs {key}")
        elif needed and (problem := checks[key](table[key])):
            problems.append(f"{where} {key} {problem}")
    credentials = _file(where, "credentials", table, folder, problems, text=True)
    tls = None
    if files := {key: table[key] for key in TLS_KEYS if key in table}:
        needed_files = ("authorities",) if kind == "dicom" else ()
        tls = _tls(where, files, needed_files, folder, problems, Tls.client)
    if kind == "dicomweb" and len(problems) == before and urlsplit(table["url"]).scheme == "http":
        problems += [f"{where} {key} needs an https:// url" for key in files]
        if credentials and not _is_loopback(host := urlsplit(table["url"]).hostname or ""):
            logger.warning("%s the credentials go to %s without encryption; give an https:// url", where, host)
    if len(problems) > before:
        return Destination(name, kind, ())
    return Destination(
        name,
        kind,
        tuple(dict.fromkeys(table["results"])),
        url=table.get("url", "").rstrip("/"),
        credentials=credentials,
        tls=tls,
        **{key: table[key] for key in ("address", "port", "title") if key in keys},
    )


def _address_problem(address: Any) -> str:
    usable = isinstance(address, str) and re.fullmatch(r"[A-Za-z0-9.:_-]+", address) and _is_host(address)
    return "" if usable else f"must be a host's name or IP address, not {address!r}"


def _is_host(name: str) -> bool:
    """Whether the parts of a name between its dots have lengths that a host's name can have."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    return host == "localhost" or _lies_in(host, LOOPBACK)


def _port_problem(port: Any) -> str:
    return "" if PORT.allows(port) else f"must be {PORT}, not {port!r}"


def _results_problem(chosen: Any, known: Collection[str]) -> str:
    usable = isinstance(chosen, list) and chosen and all(each in known for each in chosen)
    return "" if usable else f"must be a list of {', '.join(known)}, not {chosen!r}"


def url_problem(url: Any) -> str:
    """Why a text cannot be the address of a DICOMweb service, in words; "" if it can."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        named = parts.scheme in ("http", "https") and _is_host(parts.hostname or "") and (parts.port or 1) > 0
    except ValueError:
        return f"{url!r} is no address such as https://pacs.example.org/dicom-web"
    if not named or parts.query or parts.fragment:
        return f"{url!r} is no address such as https://pacs.example.org/dicom-web"
    return "must not hold a user or password: give a file of credentials" if parts.username or parts.password else ""


def _tls(
    where: str,
    table: Any,
    needed: Collection[str],
    folder: Path,
    problems: list[str],
    use: Callable[[Tls], ssl.SSLContext],
) -> Tls | None:
    """The files of a connection, tried as they will be used."""
    if not isinstance(table, dict):
        problems.append(f"{where} is not a table")
        return None
    before = len(problems)
    _check_names(table, TLS_KEYS, where, problems)
    problems += [f"{where} needs {key} for TLS" for key in needed if key not in table]
    if ("certificate" in table) != ("key" in table):
        problems.append(f"{where} needs certificate and key together")
    tls = Tls(*(_file(where, key, table, folder, problems) for key in TLS_KEYS))
    if len(problems) == before:
        try:
            use(tls)
        except (OSError, ValueError) as error:  # what ssl says names no file
            files = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.authorities) if path)
            problems.append(f"{where} the files {files} cannot be used for TLS ({error})")
    return tls


def _file(
    where: str, key: str, table: Mapping[str, Any], folder: Path, problems: list[str], text: bool = False
) -> Path | None:
    """A file that the table names, which has to be readable, and if so asked has to be UTF-8 text."""
    if key not in table:
        return None
    value = table[key]
    path = folder / value if isinstance(value, str) and value else None
    try:
        if path is None:
            problems.append(f"{where} {key} must be the path of a file, not {value!r}")
        else:
            read = path.read_bytes()
            if text:
                read.decode()
    except OSError as error:
        problems.append(f"{where} {key}: {path} cannot be read ({error.strerror})")
    except UnicodeError:
        problems.append(f"{where} {key}: {path} is not UTF-8 text")
    return path


def _check_names(table: Mapping[str, Any], known: Collection[str], where: str, problems: list[str]) -> None:
    problems += [
        f"{where} {name} is not known.{did_you_mean(name, known)}".strip(" .") for name in table if name not in known
    ]


def _lies_in(address: str, networks: Collection[Network]) -> bool:
    try:
        one = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(one, "ipv4_mapped", None)  # an IPv4 address as a socket of both kinds shows it
    return any((mapped or one) in network for network in networks)
