"""One connection to one SMB share, for one thread: requests that belong together travel in one round trip.

Below smbclient's level, because paths must be taken literally, links never followed, times kept to 100 ns, and every
answer waited for with a limit. Needs the package smbprotocol.
"""

import contextlib
import errno
import logging
import math
import socket
import struct
import uuid
from collections.abc import Sequence
from typing import Any

from smbprotocol.connection import Connection
from smbprotocol.exceptions import SMBAuthenticationError, SMBException, SMBResponseException
from smbprotocol.file_info import (
    FileDispositionInformation,
    FileEndOfFileInformation,
    FileInformationClass,
    FileLinkInformation,
    InfoType,
)
from smbprotocol.header import NtStatus
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    QueryDirectoryFlags,
    SMB2FlushRequest,
    SMB2QueryDirectoryRequest,
    SMB2SetInfoRequest,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from engine.connections import smb_messages as wire
from engine.connections.smb import Address, Facts, Side
from engine.connections.smb_messages import OF_BEFORE, READ, REMOVE, WRITE, Basic, Handle, Listed, Refused
from engine.errors import EngineError

PIECE_BYTES = 1 << 20
_CREDITS = 512
_NORMAL = 0x80
_DENIED = {
    NtStatus.STATUS_LOGON_FAILURE,
    NtStatus.STATUS_WRONG_PASSWORD,
    NtStatus.STATUS_PASSWORD_EXPIRED,
    NtStatus.STATUS_ACCESS_DENIED,
    0xC000006E,  # account restriction
    0xC000006F,  # outside of its hours
    0xC0000070,  # not from this host
    0xC0000072,  # account disabled
    0xC0000193,  # account expired
    0xC0000224,  # password must change
    0xC0000234,  # account locked out
}
_LOST = {
    NtStatus.STATUS_NETWORK_NAME_DELETED,
    NtStatus.STATUS_USER_SESSION_DELETED,
    NtStatus.STATUS_INSUFF_SERVER_RESOURCES,
    NtStatus.STATUS_INSUFFICIENT_RESOURCES,
    NtStatus.STATUS_IO_TIMEOUT,
    NtStatus.STATUS_SERVER_UNAVAILABLE,
    0xC000035C,  # network session expired
    0xC000013B,  # local disconnect
    0xC000013C,  # remote disconnect
}
# What a dead connection did is told by an error; its log would repeat it with the package's own traceback.
logging.getLogger("smbprotocol").setLevel(logging.CRITICAL + 1)


class _Connection(Connection):
    """A connection that waits for no answer longer than `limit_s` and follows no link on this side."""

    limit_s = 60.0

    def receive(
        self, request: Any, wait: bool = True, timeout: float | None = None, resolve_symlinks: bool = False
    ) -> Any:
        return super().receive(request, wait=wait, timeout=timeout or self.limit_s, resolve_symlinks=False)


class Share:
    """A session on one share. Single files raise OSError; what concerns the share raises the side's own errors."""

    def __init__(self, address: Address, side: Side) -> None:
        self._address, self._side = address, side
        self._connection = _Connection(uuid.uuid4(), address.server, address.port, require_signing=True)
        self._connection.limit_s = math.ceil(address.timeout_s)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        address, side = self._address, self._side
        name = f"{address.domain}\\{address.user}" if address.domain else address.user
        try:
            self._connection.connect(timeout=address.timeout_s)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # A server that takes nothing more must not block a sender for ever; the package has no setting.
                self._connection.transport._sock.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(address.timeout_s * 1000)
                )
            session = Session(self._connection, name, address.password, require_encryption=address.encrypt)
            session.connect()
            tree = TreeConnect(session, rf"\\{address.server}\{address.share}")
            tree.connect()
            self._connection.echo(sid=session.session_id, credit_request=_CREDITS)
        except SMBAuthenticationError as error:
            raise side.denied(f"{address.shown} refused the log-in of {name!r}") from error
        except SMBResponseException as error:
            if error.status == NtStatus.STATUS_BAD_NETWORK_NAME:
                raise side.missing(f"{address.server} has no share {address.share!r}") from error
            if error.status in _DENIED:
                raise side.denied(f"{address.shown} refused the log-in of {name!r}: {wire.brief(error)}") from error
            raise side.unavailable(f"{address.shown} can't be used: {wire.brief(error)}") from error
        except SMBException as error:
            if "encryption" in str(error):
                raise side.base(
                    f"{address.shown} does not encrypt: turn encryption on at the server, or off in the settings"
                ) from error
            raise side.unavailable(f"{address.shown} does not answer: {error}") from error
        except Exception as error:  # the package lets errors of every kind through
            raise side.unavailable(f"{address.shown} does not answer: {error}") from error
        self._session, self._tree = session.session_id, tree.tree_connect_id
        self._piece = min(PIECE_BYTES, self._connection.max_read_size, self._connection.max_write_size)

    @property
    def is_alive(self) -> bool:
        """Say whether the connection stands, as far as one can tell without asking."""
        return bool(self._connection.transport.connected) and self._connection._t_exc is None

    @property
    def piece(self) -> int:
        """Return the bytes that one request reads or writes."""
        return int(self._piece)

    def close(self) -> None:
        """End the connection; open files are closed by the server."""
        if self._connection.transport is not None:
            with contextlib.suppress(Exception):
                self._connection.disconnect(close=False)

    def list(self, path: str) -> list[Listed]:
        """Return all names of a folder, in the server's order, with what it tells of them."""
        handle = self.open(path, wire.LIST, folder=True)
        found: list[Listed] = []
        try:
            query = SMB2QueryDirectoryRequest()
            query["file_information_class"] = FileInformationClass.FILE_ID_FULL_DIRECTORY_INFORMATION
            query["file_id"] = handle.ident
            query["output_buffer_length"] = min(PIECE_BYTES, self._connection.max_transact_size)
            query["buffer"] = "*".encode("utf-16-le")
            query["flags"] = QueryDirectoryFlags.SMB2_RESTART_SCANS
            while True:
                (answer,) = self._ask(query)
                if isinstance(answer, Refused) and answer.status in (
                    NtStatus.STATUS_NO_MORE_FILES,
                    NtStatus.STATUS_NO_SUCH_FILE,
                ):
                    return found
                found += wire.listed(wire.buffer_of(wire.good(answer, path)))
                query["flags"] = 0
        finally:
            self.close_handle(handle)

    def facts(self, path: str) -> Facts:
        """Return what is told of one path; a link is told itself. `ident` and `tag` are those of its listing."""
        opened, known, _ = self._ask(
            wire.create(path, 0x80, options=CreateOptions.FILE_OPEN_REPARSE_POINT),
            wire.query(OF_BEFORE, FileInformationClass.FILE_INTERNAL_INFORMATION, 8),
            wire.close(OF_BEFORE),
        )
        handle = wire.opened(wire.good(opened, path))
        return handle.facts._replace(ident=struct.unpack("<Q", wire.buffer_of(wire.good(known, path)))[0])

    def standing(self, folder: str, name: str) -> str | None:
        """Return the name under which `name` stands in a folder, which may differ in case; None for nothing."""
        for listed in self.list(folder):
            spelt = listed.name.decode("utf-8", "surrogatepass")
            if spelt.casefold() == name.casefold():
                return spelt
        return None

    def open(self, path: str, access: int = READ, *, folder: bool = False) -> Handle:
        """Open what is there. A link in a folder's place is opened itself, one in a file's place is refused."""
        options = CreateOptions.FILE_NON_DIRECTORY_FILE
        if folder:
            options = CreateOptions.FILE_DIRECTORY_FILE | CreateOptions.FILE_OPEN_REPARSE_POINT
        (answer,) = self._ask(wire.create(path, access, options=options))
        return wire.opened(wire.good(answer, path))

    def read_whole(self, path: str, size: int, *, security: bool) -> tuple[Facts, bytes, bytes] | None:
        """Return a small file's facts, content and security descriptor in one round trip; None when it is in flux.

        `size` is what it was listed with, at most one piece.
        """
        messages = [wire.create(path, READ, options=CreateOptions.FILE_NON_DIRECTORY_FILE)]
        if size:
            messages.append(wire.read(OF_BEFORE, 0, size))
        if security:
            messages.append(wire.query_security(OF_BEFORE))
        answers = self._ask(*messages, wire.close(OF_BEFORE, tell=True))
        handle = wire.opened(wire.good(answers[0], path))
        if isinstance(answers[-1], Refused):
            self.close_handle(handle)
            return None
        data = b"" if not size else self._data(answers[1], path)
        descriptor = wire.buffer_of(wire.good(answers[-2], path)) if security else b""
        created, _, modified, changed, _, end, _ = wire.CLOSED.unpack_from(answers[-1])
        facts = handle.facts
        if (end, modified, changed) != (facts.size, facts.modified, facts.changed) or len(data) != end:
            return None
        return facts._replace(created=created), data, descriptor

    def begin_read(self, handle: Handle, offset: int, length: int) -> Any:
        """Ask for a piece; `end_read` waits for it. Several may be on their way."""
        return self._send(wire.read(handle.ident, offset, length))[0]

    def end_read(self, request: Any) -> bytes:
        """Return a piece that was asked for; less than that at the end of the file."""
        return self._data(self._receive(request), "")

    def facts_now(self, handle: Handle) -> Facts:
        """Return what an open file is like now."""
        (answer,) = self._ask(wire.query(handle.ident, FileInformationClass.FILE_NETWORK_OPEN_INFORMATION, 56))
        told = wire.buffer_of(wire.good(answer, ""))
        created, _, modified, changed, _, end, attributes = wire.OPEN_FACTS.unpack_from(told)
        return Facts(attributes, end, modified, changed, created)

    def security(self, handle: Handle) -> bytes:
        """Return owner, group and access list as the protocol writes them (MS-DTYP 2.4.6)."""
        (answer,) = self._ask(wire.query_security(handle.ident))
        return wire.buffer_of(wire.good(answer, ""))

    def close_handle(self, handle: Handle) -> None:
        """Close an open file; nothing is raised for one that is closed already."""
        self._ask(wire.close(handle.ident))

    def make_folder(self, path: str) -> None:
        """Create a folder. Raises FileExistsError."""
        options = CreateOptions.FILE_DIRECTORY_FILE | CreateOptions.FILE_OPEN_REPARSE_POINT
        create = wire.create(path, wire.LIST, options=options, disposition=CreateDisposition.FILE_CREATE)
        made, _ = self._ask(create, wire.close(OF_BEFORE))
        wire.good(made, path)

    def create(self, path: str, *, owning: bool = False) -> Handle:
        """Create a file that nobody else may open meanwhile; `owning`: its owner may be set. Raises FileExistsError."""
        access = READ | WRITE | REMOVE | (wire.OWNERSHIP if owning else 0)
        create = wire.create(path, access, disposition=CreateDisposition.FILE_CREATE, share=0)
        (answer,) = self._ask(create)
        return wire.opened(wire.good(answer, path))

    def write(self, handle: Handle, data: memoryview, offset: int) -> None:
        """Write all of `data`."""
        for at in range(0, len(data), self._piece):
            piece = bytes(data[at : at + self._piece])
            (answer,) = self._ask(wire.write(handle.ident, offset + at, piece))
            if struct.unpack_from("<4xI", wire.good(answer, ""))[0] != len(piece):
                raise OSError(errno.EIO, "the server wrote less than it was given")

    def write_whole(self, aside: str, path: str, data: bytes, basic: "Basic") -> None:
        """Write a new file of at most one piece under `aside` and rename it to `path`, in one round trip.

        Raises FileExistsError, with nothing left under `aside`, when something stands at `path`.
        """
        access = READ | WRITE | REMOVE
        messages = [wire.create(aside, access, disposition=CreateDisposition.FILE_CREATE, share=0)]
        if data:
            messages.append(wire.write(OF_BEFORE, 0, data))
        messages += [wire.rename(OF_BEFORE, path, replace=False), wire.set_info(OF_BEFORE, basic.info())]
        answers = self._ask(*messages, wire.close(OF_BEFORE))
        wire.good(answers[0], aside)
        for answer in answers[1:]:
            if isinstance(answer, Refused):
                self.remove(aside)
                wire.good(answer, path)

    def resize(self, handle: Handle, size: int) -> None:
        """Set the size of an open file; what is added reads as zeros."""
        info = FileEndOfFileInformation()
        info["end_of_file"] = size
        self._set(handle, info)

    def rename(self, handle: Handle, path: str, *, replace: bool) -> None:
        """Move an open file to `path`. Raises FileExistsError unless it may replace a file."""
        (answer,) = self._ask(wire.rename(handle.ident, path, replace=replace))
        wire.good(answer, path)

    def link(self, handle: Handle, path: str) -> None:
        """Give an open file one more name. Raises FileExistsError."""
        info = FileLinkInformation()
        info["file_name"] = path
        self._set(handle, info)

    def set_basic(self, handle: Handle, basic: "Basic") -> None:
        """Set times and attributes of an open file or folder."""
        self._set(handle, basic.info())

    def set_security(self, handle: Handle, descriptor: bytes) -> None:
        """Set owner, group and access list; the handle needs OWNERSHIP."""
        message = SMB2SetInfoRequest()
        message["info_type"] = InfoType.SMB2_0_INFO_SECURITY
        message["additional_information"] = wire.OWNER_GROUP_DACL
        message["file_id"] = handle.ident
        message["buffer"] = descriptor
        (answer,) = self._ask(message)
        wire.good(answer, "")

    def flush(self, handle: Handle) -> None:
        """Have the server write an open file to its disk."""
        message = SMB2FlushRequest()
        message["file_id"] = handle.ident
        (answer,) = self._ask(message)
        wire.good(answer, "")

    def remove(self, path: str) -> None:
        """Delete a file, a read-only one too; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            handle = self.open(path, REMOVE | wire.SET_ATTRIBUTES)
            try:
                self._set(handle, Basic(0, 0, _NORMAL).info())  # a read-only file can't be deleted
                info = FileDispositionInformation()
                info["delete_pending"] = True
                self._set(handle, info)
            finally:
                self.close_handle(handle)

    def _set(self, handle: Handle, info: Any) -> None:
        (answer,) = self._ask(wire.set_info(handle.ident, info))
        wire.good(answer, "")

    def _ask(self, *messages: Any) -> "Sequence[bytes | Refused]":
        return [self._receive(request) for request in self._send(*messages)]

    def _send(self, *messages: Any) -> Any:
        try:
            return self._connection.send_compound(list(messages), self._session, self._tree, related=True)
        except Exception as error:  # the package lets errors of every kind through
            raise self._gone(error) from error

    def _receive(self, request: Any) -> "bytes | Refused":
        try:
            return bytes(self._connection.receive(request)["data"].get_value())
        except SMBResponseException as error:
            if error.status in _LOST:
                raise self._gone(wire.brief(error)) from error
            return Refused(error.status)
        except Exception as error:  # the package lets errors of every kind through
            raise self._gone(error) from error

    def _data(self, answer: "bytes | Refused", path: str) -> bytes:
        if isinstance(answer, Refused) and answer.status == NtStatus.STATUS_END_OF_FILE:
            return b""
        data = wire.good(answer, path)
        offset, length = struct.unpack_from("<2xBxI", data)
        return data[offset - 64 : offset - 64 + length]

    def _gone(self, why: object) -> EngineError:
        self.close()
        return self._side.unavailable(f"{self._address.shown} went away: {why}")
