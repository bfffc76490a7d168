"""The messages of SMB that a share is read and written with, and what the answers mean. Needs smbprotocol."""

import errno
import os
import struct
from typing import Any, NamedTuple

from smbprotocol.exceptions import SMBResponseException
from smbprotocol.file_info import FileBasicInformation, FileRenameInformation, InfoType
from smbprotocol.header import NtStatus
from smbprotocol.open import (
    CloseFlags,
    CreateDisposition,
    CreateOptions,
    ImpersonationLevel,
    ShareAccess,
    SMB2CloseRequest,
    SMB2CreateRequest,
    SMB2QueryInfoRequest,
    SMB2ReadRequest,
    SMB2SetInfoRequest,
    SMB2WriteRequest,
)

from engine.connections.smb import Facts

READ, WRITE, REMOVE = 0x0012_0089, 0x0012_0196, 0x0001_0000  # generic read, generic write, delete
OWNERSHIP = 0x000C_0000  # write the access list and the owner
SET_ATTRIBUTES = 0x0010_0100
FOLDER_ATTRIBUTES = 0x0010_0180  # read and write a folder's attributes
LIST = 0x0010_0081
_EVERYBODY = ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE
OF_BEFORE = b"\xff" * 16  # the file that an earlier request of the same round trip opened
OWNER_GROUP_DACL = 7
_SECURITY_BYTES = 64 << 10

_CREATED = struct.Struct("<8x6qI4x16s")  # an answer to CREATE, from its third field on
CLOSED = struct.Struct("<4x4x6qI")
_LISTED = struct.Struct("<II6qIIIIQ")
OPEN_FACTS = struct.Struct("<6qI")

_STATUS_ERRORS = {
    NtStatus.STATUS_OBJECT_NAME_NOT_FOUND: errno.ENOENT,
    NtStatus.STATUS_OBJECT_PATH_NOT_FOUND: errno.ENOENT,
    NtStatus.STATUS_NO_SUCH_FILE: errno.ENOENT,
    NtStatus.STATUS_NOT_FOUND: errno.ENOENT,
    NtStatus.STATUS_DELETE_PENDING: errno.ENOENT,
    NtStatus.STATUS_FILE_CLOSED: errno.ESTALE,
    NtStatus.STATUS_OBJECT_NAME_COLLISION: errno.EEXIST,
    NtStatus.STATUS_NOT_A_DIRECTORY: errno.ENOTDIR,
    NtStatus.STATUS_FILE_IS_A_DIRECTORY: errno.EISDIR,
    NtStatus.STATUS_DIRECTORY_NOT_EMPTY: errno.ENOTEMPTY,
    NtStatus.STATUS_STOPPED_ON_SYMLINK: errno.ELOOP,
    NtStatus.STATUS_DISK_FULL: errno.ENOSPC,
    NtStatus.STATUS_NOT_SUPPORTED: errno.ENOTSUP,
    0xC0000044: errno.EDQUOT,
}
_TEXTS = {
    NtStatus.STATUS_ACCESS_DENIED: (errno.EACCES, "the account may not do this"),
    NtStatus.STATUS_PRIVILEGE_NOT_HELD: (errno.EACCES, "the account lacks a privilege for this"),
    NtStatus.STATUS_CANNOT_DELETE: (errno.EACCES, "what stands there is read-only or in use"),
    NtStatus.STATUS_SHARING_VIOLATION: (errno.EBUSY, "another program has it open and shares it with nobody"),
    0xC0000054: (errno.EBUSY, "another program has locked what should be read"),
    NtStatus.STATUS_OBJECT_NAME_INVALID: (errno.EINVAL, "the server does not take this name"),
}


class Refused(NamedTuple):
    status: int


class Handle(NamedTuple):
    """An open file or folder, and what it was like when it was opened."""

    ident: bytes
    facts: Facts


class Listed(NamedTuple):
    """One name of a folder, as UTF-8."""

    name: bytes
    facts: Facts


class Basic(NamedTuple):
    """Times (FILETIME, 0 leaves one as it is) and attributes to set."""

    created: int
    modified: int
    attributes: int

    def info(self) -> Any:
        """Return the message."""
        info = FileBasicInformation()
        info["creation_time"], info["last_write_time"] = self.created, self.modified
        info["file_attributes"] = self.attributes
        return info


def brief(error: SMBResponseException) -> str:
    """Return the name of a status, as `LOGON_FAILURE`."""
    names = (name for name, value in vars(NtStatus).items() if value == error.status)
    return next(names, f"STATUS_{error.status:#x}").removeprefix("STATUS_")


def good(answer: "bytes | Refused", path: str) -> bytes:
    """Return an answer's data. Raises the OSError that a refusal means."""
    if not isinstance(answer, Refused):
        return answer
    status = answer.status
    if status in _STATUS_ERRORS:
        number = _STATUS_ERRORS[status]
        raise OSError(number, os.strerror(number), path)
    number, text = _TEXTS.get(status, (errno.EIO, f"the server answered with status {status:#010x}"))
    raise OSError(number, text, path)


def create(
    path: str,
    access: int,
    *,
    options: int = CreateOptions.FILE_NON_DIRECTORY_FILE,
    disposition: int = CreateDisposition.FILE_OPEN,
    share: int = _EVERYBODY,
) -> Any:
    message = SMB2CreateRequest()
    message["impersonation_level"] = ImpersonationLevel.Impersonation
    message["desired_access"] = access
    message["share_access"] = share
    message["create_disposition"] = disposition
    message["create_options"] = options
    message["buffer_path"] = path.encode("utf-16-le", "surrogatepass") or b"\0\0"
    return message


def opened(data: bytes) -> Handle:
    created, _, modified, changed, _, end, attributes, ident = _CREATED.unpack_from(data)
    return Handle(ident, Facts(attributes, end, modified, changed, created))


def close(ident: bytes, *, tell: bool = False) -> Any:
    message = SMB2CloseRequest()
    message["file_id"] = ident
    if tell:
        message["flags"] = CloseFlags.SMB2_CLOSE_FLAG_POSTQUERY_ATTRIB
    return message


def read(ident: bytes, offset: int, length: int) -> Any:
    message = SMB2ReadRequest()
    message["file_id"], message["offset"], message["length"] = ident, offset, length
    return message


def write(ident: bytes, offset: int, data: bytes) -> Any:
    message = SMB2WriteRequest()
    message["file_id"], message["offset"], message["buffer"] = ident, offset, data
    return message


def query(ident: bytes, kind: int, length: int) -> Any:
    message = SMB2QueryInfoRequest()
    message["info_type"] = InfoType.SMB2_0_INFO_FILE
    message["file_info_class"] = kind
    message["output_buffer_length"], message["file_id"] = length, ident
    return message


def query_security(ident: bytes) -> Any:
    message = SMB2QueryInfoRequest()
    message["info_type"] = InfoType.SMB2_0_INFO_SECURITY
    message["additional_information"] = OWNER_GROUP_DACL
    message["output_buffer_length"], message["file_id"] = _SECURITY_BYTES, ident
    return message


def set_info(ident: bytes, info: Any) -> Any:
    message = SMB2SetInfoRequest()
    message["info_type"], message["file_info_class"] = info.INFO_TYPE, info.INFO_CLASS
    message["file_id"], message["buffer"] = ident, info
    return message


def rename(ident: bytes, path: str, *, replace: bool) -> Any:
    info = FileRenameInformation()
    info["replace_if_exists"] = replace
    info["file_name"] = path
    return set_info(ident, info)


def buffer_of(data: bytes) -> bytes:
    offset, length = struct.unpack_from("<2xHI", data)
    return data[offset - 64 : offset - 64 + length]


def listed(buffer: bytes) -> list[Listed]:
    """Take a run of FileIdFullDirectoryInformation apart (MS-FSCC 2.4.22)."""
    found: list[Listed] = []
    at = 0
    while at + _LISTED.size <= len(buffer):
        following, _, created, _, modified, changed, end, _, attributes, length, tag, _, ident = _LISTED.unpack_from(
            buffer, at
        )
        start = at + _LISTED.size
        name = buffer[start : start + length].decode("utf-16-le", "surrogatepass")
        if name not in (".", ".."):
            facts = Facts(attributes, end, modified, changed, created, ident, tag)
            found.append(Listed(name.encode("utf-8", "surrogatepass"), facts))
        if not following:
            break
        at += following
    return found
