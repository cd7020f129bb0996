"""A DICOMweb service: finds radiographs (QIDO-RS), fetches them as stored (WADO-RS) and stores results (STOW-RS).

Nothing but the service's own address is ever contacted: no proxy, and no address that it redirects to.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomweb_client.session_utils import create_session
from dicomweb_client.web import DICOMwebClient

from jaxpneumo.dicom.dicom import as_data_set, as_file
from jaxpneumo.process.errors import InputError
from jaxpneumo.serve.accepted import RADIOGRAPHS, is_uid
from jaxpneumo.serve.partners import Destination, Tls

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 120.0
AS_STORED = (("application/dicom", "*"),)  # otherwise a service decompresses the pixels
_CLASS, _UID, _STUDY, _SERIES = "00080016", "00080018", "0020000D", "0020000E"


class RefusedError(InputError):
    """The service was reached, and did not do what it was asked."""


@dataclass(frozen=True)
class Instance:
    """A radiograph of a service, by its UIDs."""

    study: str
    series: str
    uid: str


class Service(DICOMwebClient):
    """A DICOMweb service; as the library's client, which only logs what an answer warns of.

    Attributes:
      has_more: whether the last answer said with the warning 299 that there is more than it holds (DICOM PS3.18 8.3.4).
    """

    def __init__(self, url: str, session: Any):
        super().__init__(url, session=session, timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
        self.has_more = False
        session.hooks["response"].append(self._look)

    def _look(self, answer: Any, *_: Any, **__: Any) -> None:
        self.has_more = bool(re.match(r"(.*,)?\s*299\b", answer.headers.get("Warning", "")))


def connect(url: str, credentials: str = "", tls: Tls | None = None) -> Service:
    """A service to ask; nothing is sent yet.

    Args:
      url: of the service.
      credentials: user:password, or a token; "" for none.
      tls: a certificate to show, and the authorities that its own has to be signed by; None: those of the system.
    """
    session = create_session()
    session.trust_env = False  # no proxies, no passwords of ~/.netrc
    session.max_redirects = 0
    if ":" in credentials:
        user, _, password = credentials.partition(":")
        session.auth = (user, password)
    elif credentials:
        session.headers["Authorization"] = f"Bearer {credentials}"
    if tls and tls.authorities:
        session.verify = str(tls.authorities)
    if tls and tls.certificate:
        session.cert = (str(tls.certificate), str(tls.key))
    client = Service(url, session)
    client.set_http_retry_params(retry=False)
    return client


def find(client: Service, study: str | None, filters: Mapping[str, str]) -> tuple[list[Instance], int, str]:
    """The radiographs of a study, or of all studies, that match filters.

    Args:
      client: the result of `connect`.
      study: Study Instance UID, or None for all studies.
      filters: values by keyword, such as {"StudyDate": "20261101-20261130"}.

    Returns:
      The radiographs, how many other objects there are, and why there may be more of both; "" where these are all.

    Raises:
      ConnectionError: the service cannot be reached.
      RefusedError: it did not answer as it should.
    """
    found: dict[str, list[str]] = {}  # by SOP Instance UID
    warned = [False]
    with _told(client):
        while True:  # a service may give a part of what it has, and one that does not count gives the same part again
            page = client.search_for_instances(study, offset=len(found) or None, search_filters=dict(filters))
            named = {_value(one, _UID): [_value(one, tag) for tag in (_CLASS, _STUDY, _SERIES, _UID)] for one in page}
            warned.append(client.has_more)
            if named.keys() <= found.keys():
                break
            found |= named
    partial = ""
    if named:
        partial = "it gave the same again where more was asked for, so it may have more than it gives at once"
    elif any(warned[-2:]):  # the last that gave something, and the one after it
        partial = "it says that it has more, and does not give it"
    if partial:
        partial = f"{client.base_url} may have more that matches: {partial}. Ask for less at once, such as single days"
    wanted = [
        Instance(*uids) for sop_class, *uids in found.values() if sop_class in RADIOGRAPHS and all(map(is_uid, uids))
    ]
    return wanted, len(found) - len(wanted), partial


def reach(client: Service) -> None:
    """Asks for one study, whichever. Raises ConnectionError if the service cannot be reached; any answer will do."""
    with suppress(RefusedError), _told(client):
        client.search_for_studies(limit=1)


def fetch(client: Service, instance: Instance) -> bytes:
    """A radiograph as a DICOM file, in the transfer syntax in which it is stored; errors as those of `find`."""
    with _told(client):
        data_set = client.retrieve_instance(instance.study, instance.series, instance.uid, media_types=AS_STORED)
        own, file = str(data_set.get("SOPInstanceUID", "")), as_file(data_set)
    if own != instance.uid:
        raise RefusedError(f"{client.base_url} answered another object than the one asked for")
    return file


def store(client: Service, path: Path) -> str:
    """Stores a DICOM file; "" or why the service did not take it. Raises ConnectionError if it cannot be reached."""
    data = path.read_bytes()
    try:
        with _told(client):
            failed = client.store_instances([as_data_set(data)]).get("FailedSOPSequence") or []
            return f"it answered {int(failed[0].get('FailureReason', 0)):#06x}" if failed else ""
    except RefusedError as error:
        return str(error)


def send(destination: Destination, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Stores DICOM files at a destination of kind "dicomweb", one request each; as `listener.send`."""
    credentials = destination.credentials.read_text(encoding="utf-8").strip() if destination.credentials else ""
    client = connect(destination.url, credentials, destination.tls)
    for path in paths:
        yield path, store(client, path)


@contextmanager
def _told(client: Service) -> Iterator[None]:
    """Says what went wrong without the request, which may name a patient."""
    try:
        yield
    except Exception as error:  # a service can answer anything, and the library then raises nearly anything
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None and isinstance(error, OSError) and not isinstance(error, ValueError):  # that is of JSON
            raise ConnectionError(f"{client.base_url} cannot be reached ({type(error).__name__})") from None
        what = f"HTTP {status}" if status else f"what cannot be read ({type(error).__name__})"
        raise RefusedError(f"{client.base_url} answered {what}") from None


def _value(instance: Mapping[str, Any], tag: str) -> str:
    values = instance.get(tag, {}).get("Value") or [""]
    return str(values[0])
