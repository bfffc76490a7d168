"""The Samba of deploy/dev-services: one share, one account, everything in the server's own folder."""

import os
import pwd
import secrets
import socket
from typing import Any

from server_programs import find
from servers import HOST, Server, free_ports

_MISSING = "Debian: samba"
_SHARE = "share"


def start_samba(server: Server) -> dict[str, Any]:
    """Start a server whose share is the folder `share` in the server's; files belong to the account that runs it."""
    smbd, pdbedit = (find(one, missing=_MISSING) for one in ("smbd", "pdbedit"))
    [port], password = free_ports(1), secrets.token_urlsafe(24)
    user, folder, config = pwd.getpwuid(os.geteuid()).pw_name, server.folder, server.folder / "smb.conf"
    for name in ("private", "state", "cache", "lock", _SHARE):
        (folder / name).mkdir(mode=0o755)
    config.write_text(f"""[global]
server role = standalone server
netbios name = BACKUPSITE
smb ports = {port}
interfaces = {HOST}
bind interfaces only = yes
disable netbios = yes
passdb backend = tdbsam:{folder}/private/passdb.tdb
private dir = {folder}/private
state directory = {folder}/state
cache directory = {folder}/cache
lock directory = {folder}/lock
pid directory = {folder}/lock
ncalrpc dir = {folder}/lock/ncalrpc
log file = {folder}/log.smbd
load printers = no
disable spoolss = yes
map to guest = never
server min protocol = SMB2
server smb encrypt = desired
# The data lives no longer than the server.
strict sync = no
[{_SHARE}]
path = {folder}/{_SHARE}
read only = no
store dos attributes = yes
map archive = no
""")
    server.run(pdbedit, "-s", str(config), "-a", "-t", "-u", user, text=f"{password}\n{password}\n")
    server.spawn(smbd, "-s", str(config), "-F", "--no-process-group")

    def ready() -> bool:
        with socket.create_connection((HOST, port), timeout=2):
            return True

    server.wait(ready)
    place = {"port": port, "user": user, "password": password, "share": _SHARE, "data": str(folder / _SHARE)}
    return place | {"url": f"smb://{HOST}:{port}/{_SHARE}"}
