"""The DICOM node: takes radiographs by C-STORE, answers C-ECHO, and sends results on by C-STORE.

Who may call, and what is kept before the answer, is decided here; the folders are in `spool.py`.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from socketserver import BaseServer
from typing import Any, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from jaxpneumo.dicom.dicom import IMPLEMENTATION_UID
from jaxpneumo.dicom.radiograph import MAX_BYTES
from jaxpneumo.serve.accepted import (
    NOT_UNDERSTOOD,
    OUT_OF_RESOURCES,
    RADIOGRAPHS,
    SUCCESS,
    SYNTAXES,
    is_uid,
    judge,
)
from jaxpneumo.serve.events import Events
from jaxpneumo.serve.partners import Destination, Partners
from jaxpneumo.serve.spool import KNOWN, OTHER, Limits, Spool, content_digest

# Nothing of a data set goes to the library's log, and what is sent leaves as the file holds it.
_config.LOG_HANDLER_LEVEL = "none"
_config.STORE_SEND_CHUNKED_DATASET = True
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

VERIFICATION = "1.2.840.10008.1.1"
# Reasons of a rejection (DICOM PS3.8 9.3.4): permanent, by the user
_CALLING_TITLE, _CALLED_TITLE = 3, 7
ASSOCIATIONS = 16  # at once
PDU = 128 << 10  # bytes of a message's parts
LONGEST = PDU + (64 << 10)  # bytes of what a partner may send at once, also to ask for an association
SECONDS = 30.0  # that a partner may take for an answer
LAST_SECONDS = 10.0  # that associations may go on when the node ends
DAMAGED = "its file is damaged: it cannot be read, or is no DICOM file"


@contextmanager
def listening(
    spool: Spool, partners: Partners, limits: Limits, events: Events, title: str, address: tuple[str, int]
) -> Iterator[tuple[str, int]]:
    """A node that takes radiographs for the time of the block. At its end it takes nothing more and lets callers go.

    Args:
      spool: where the radiographs are kept.
      partners: who may call.
      limits: from where on it answers 0xA700, out of resources.
      events: are told what happens.
      title: the node's AE title.
      address: host and port to bind; port 0 is any free one.

    Yields:
      The host and port that it is bound to.

    Raises:
      OSError: they cannot be bound.
    """
    entity = _entity(title)
    entity.maximum_associations, entity.maximum_pdu_size = ASSOCIATIONS, PDU
    for uid in RADIOGRAPHS:
        entity.add_supported_context(uid, list(SYNTAXES))
    entity.add_supported_context(VERIFICATION)
    node = _Node(spool, partners, limits, events, title)
    checks = [(evt.EVT_CONN_OPEN, _limit_connection), (evt.EVT_REQUESTED, node.check), (evt.EVT_DATA_RECV, _limit_size)]
    handlers: list[Any] = [*checks, (evt.EVT_REJECTED, node.rejected), (evt.EVT_C_STORE, node.store)]
    server = entity.make_server(address, evt_handlers=handlers, server_class=_Server, node=node)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="listener", daemon=True)
    thread.start()
    try:
        yield server.server_address[:2]
    finally:
        node.ending = True
        BaseServer.shutdown(server)
        server.server_close()
        end = time.monotonic() + LAST_SECONDS
        while any(caller.is_established for caller in server.active_associations) and time.monotonic() < end:
            time.sleep(0.05)
        for caller in server.active_associations:
            caller.abort(block=False)
            caller.dul.kill_dul()
        thread.join()


class _Server(ThreadedAssociationServer):
    """Hangs up on who may not call, and never waits for a slow caller while others call."""

    daemon_threads = True  # the end does not wait for a caller who says nothing

    def __init__(self, *arguments: Any, node: "_Node", **settings: Any):
        self._node = node
        self._tls = node.partners.tls.server() if node.partners.tls else None
        super().__init__(*arguments, **settings)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        known = self._node.partners.knows_address(client_address[0])
        if not known:
            self._node.events.note("rejected", address=client_address[0], reason="no peer has this address")
        return known

    def finish_request(self, request: Any, client_address: Any) -> None:
        """As the library's, in a thread of this caller."""
        request.settimeout(SECONDS)
        if self._tls:
            request = self._tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        self._node.events.note("rejected", address=client_address[0], reason=f"no connection: {error}")


@dataclass
class _Node:
    """What a node answers. `ending` is set when it takes nothing more."""

    spool: Spool
    partners: Partners
    limits: Limits
    events: Events
    title: str
    ending: bool = False

    def check(self, event: evt.Event) -> None:
        """Rejects an association of a wrong title or of an address that is not the title's."""
        request, address = cast(A_ASSOCIATE, event.assoc.requestor.primitive), event.assoc.requestor.address
        called, calling = request.called_ae_title.strip(), request.calling_ae_title.strip()
        if called != self.title:
            reason, diagnostic = f"it called {called}, this is {self.title}", _CALLED_TITLE
        elif not self.partners.knows(calling, address):
            reason, diagnostic = "no peer has this title and address", _CALLING_TITLE
        else:
            return
        self.events.note("rejected", calling=calling, address=address, reason=reason)
        event.assoc.acse.send_reject(1, 1, diagnostic)
        event.assoc.is_rejected = True
        event.assoc.kill()

    def rejected(self, event: evt.Event) -> None:
        """Notes an association that the library rejected, which it does for one reason."""
        peer = event.assoc.requestor
        self.events.note(
            "rejected",
            calling=cast(A_ASSOCIATE, peer.primitive).calling_ae_title.strip(),
            address=peer.address,
            reason=f"too many associations at once, more than {ASSOCIATIONS}",
        )

    def store(self, event: evt.Event) -> int:
        """Keeps an object, or says why not; the status of the answer."""
        uid = str(cast(C_STORE, event.request).AffectedSOPInstanceUID)
        caller = {"calling": event.assoc.requestor.ae_title.strip(), "address": event.assoc.requestor.address}
        problem = "the listener is ending" if self.ending else self.limits.problem(self.spool)
        if problem:
            self.events.note("busy", uid=uid, **caller, reason=problem)
            return OUT_OF_RESOURCES
        try:
            return self._keep(event, uid, caller)
        except OSError as error:
            self.events.note("busy", uid=uid, **caller, reason=f"it cannot be written: {error.strerror}")
            return OUT_OF_RESOURCES

    def _keep(self, event: evt.Event, uid: str, caller: dict[str, str]) -> int:
        request, syntax = cast(C_STORE, event.request), str(event.context.transfer_syntax)
        data_set = cast(BytesIO, request.DataSet).getvalue()
        digest = content_digest(syntax, data_set)
        facts = {
            **caller,
            "received": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "transfer_syntax": syntax,
            "sop_class": str(request.AffectedSOPClassUID),
        }
        data = event.encoded_dataset()
        status, reason = judge(uid, facts["sop_class"], str(event.context.abstract_syntax), data)
        if status != SUCCESS:
            self.spool.refuse(uid if is_uid(uid) else "no-uid", digest, data, reason, facts)
            self.events.note("refused", uid=uid, **caller, status=f"{status:#06x}", reason=reason)
            return status
        answer = self.spool.receive(uid, digest, data, facts)
        if answer is OTHER:
            self.events.note("conflict", uid=uid, **caller, reason="it came before with other content; kept aside")
            return NOT_UNDERSTOOD
        self.events.note("known" if answer is KNOWN else "received", uid=uid, **caller, bytes=len(data))
        return SUCCESS


def _limit_size(event: evt.Event) -> None:
    """Ends an association whose message grows beyond any radiograph; the library would fill the memory with it."""
    message = event.assoc.dimse.message
    if message is not None and cast(BytesIO, message.data_set).tell() + message.encoded_command_set.tell() > MAX_BYTES:
        event.assoc.abort(block=False)


def send(destination: Destination, paths: Sequence[Path], title: str) -> Iterator[tuple[Path, str]]:
    """Sends DICOM files by C-STORE, in one association.

    Args:
      destination: of kind "dicom".
      paths: the files.
      title: the AE title of this side.

    Yields:
      (file, "" or why the destination did not take it), as they are answered.

    Raises:
      OSError: there is no association, or it ended; the rest was not sent.
    """
    kinds = [(path, _kind(path)) for path in paths]
    readable = [(path, kind) for path, kind in kinds if kind is not None]
    for path, kind in kinds:
        if kind is None:
            yield path, DAMAGED
    if not readable:
        return
    association = _associate(destination, [kind for _, kind in readable], title)
    try:
        taken = {(cx.abstract_syntax, cx.transfer_syntax[0]) for cx in association.accepted_contexts}
        for path, kind in readable:
            if kind not in taken:
                yield path, "it takes no objects of this SOP class and transfer syntax"
                continue
            status = _store(association, path)
            if status is None:
                where = f"{destination.address}:{destination.port}"
                raise ConnectionError(f"{where} did not answer, or ended the association")
            # Warnings (0xBxxx) say that the object was stored.
            yield path, "" if status == SUCCESS or status >> 12 == 0xB else f"it answered {status:#06x}"
    finally:
        if association.is_established:
            association.release()


def _associate(destination: Destination, kinds: Sequence[tuple[str, str]], title: str) -> Association:
    """An association for these SOP classes and transfer syntaxes; ConnectionError without one."""
    entity = _entity(title)
    for sop_class, syntax in dict.fromkeys(kinds):
        entity.add_requested_context(sop_class, syntax)
    tls = (destination.tls.client(), destination.address) if destination.tls else None
    try:
        association = entity.associate(
            destination.address,
            destination.port,
            ae_title=destination.title,
            max_pdu=PDU,
            tls_args=tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, _limit_connection)],
        )
    except UnicodeError as error:
        raise ConnectionError(f"{destination.address} is no host's name") from error
    if not association.is_established:
        why = "rejected the association" if association.is_rejected else "cannot be reached, or takes no such objects"
        raise ConnectionError(f"{destination.address}:{destination.port} {why}")
    return association


def _limit_connection(event: evt.Event) -> None:
    """Lets no partner hold a connection up or fill the memory, also before it has said who it is."""
    connection = cast(AssociationSocket, event.assoc.dul.socket)
    opened = cast(socket.socket, connection.socket)
    # A message is two short pieces, and the second would wait for the first one's receipt.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.settimeout(SECONDS)  # for what is sent; the library takes it away after connecting
    connection.recv = partial(_receive, connection)


def _receive(connection: AssociationSocket, nr_bytes: int) -> bytearray:
    """As the library's `recv` for the head or the rest of a PDU, which has a size and a time at most.

    Raises OSError, which the library takes for a closed connection.
    """
    if nr_bytes > LONGEST:
        raise ConnectionError("longer than was negotiated")
    opened, end, received = cast(socket.socket, connection.socket), time.monotonic() + SECONDS, bytearray()
    try:
        while len(received) < nr_bytes:
            opened.settimeout(max(0.001, end - time.monotonic()))
            part = opened.recv(nr_bytes - len(received))
            if not part:
                break
            received += part
            if time.monotonic() > end:
                raise TimeoutError
    finally:
        opened.settimeout(SECONDS)
    return received


def _store(association: Association, path: Path) -> int | None:
    """The status that a file is answered with; None without an answer."""
    try:
        return association.send_c_store(path).get("Status")
    except (RuntimeError, ValueError, AttributeError):  # the other side has ended the association
        return None


def _kind(path: Path) -> tuple[str, str] | None:
    """SOP class and transfer syntax of a file, by its header; None if it has none that can be read."""
    try:
        meta, _ = split_dataset(path)
        kind = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except Exception:  # of a damaged file the library raises nearly anything
        return None
    return kind if all(map(is_uid, (*kind, str(meta.get("MediaStorageSOPInstanceUID", ""))))) else None


def _entity(title: str) -> ApplicationEntity:
    entity = ApplicationEntity(title)
    entity.implementation_class_uid, entity.implementation_version_name = IMPLEMENTATION_UID, "JAXPNEUMO"
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = SECONDS
    return entity
