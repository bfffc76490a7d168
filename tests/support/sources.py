"""One source of each kind, for tests of what holds for all of them, with what a person would give."""

from typing import Any

from accounts.models import Account
from policies import reading
from policies.kinds import TYPES
from policies.models import Source
from tests.support.people import T0
from vaults.models import Region

SECRET = "hunter2-secret-hunter2"
SETTINGS: dict[str, dict[str, Any]] = {
    "files": {"roots": ["/srv"]},
    "smb": {"server": "203.0.113.7", "share": "data"},
    "bucket": {"endpoint": "https://203.0.113.7:9000", "bucket": "shop"},
    "postgres": {"databases": ["shop"]},
    "mariadb": {"databases": ["shop"]},
    "milvus": {"uri": "https://203.0.113.7"},
    "tablestore": {"endpoint": "https://203.0.113.7", "instance": "shop"},
    "dynamodb": {"region": "eu-central-1", "endpoint": "https://203.0.113.7"},
    "command": {"argv": ["pg_dump", "shop"]},
    "backint": {"database": "SYSTEMDB@HDB"},
}
CREDENTIALS: dict[str, dict[str, str]] = {
    "smb": {"user": "reader", "password": SECRET},
    "bucket": {"access_key": "somebody", "secret_key": SECRET},
    "postgres": {"password": SECRET},
    "mariadb": {"password": SECRET},
    "milvus": {"token": SECRET},
    "tablestore": {"access_key": "somebody", "secret_key": SECRET},
    "dynamodb": {"access_key": "somebody", "secret_key": SECRET},
    "command": {"environment": f"PASSWORD={SECRET}"},
}


def source_of(kind: str, account: Account, region: Region) -> Source:
    """Return a source of the kind, checked and with sealed credentials, not stored yet."""
    host = "web1" if TYPES[kind].on_host else ""
    source = Source(account=account, region=region, name=f"the {kind}", kind=kind, host=host, created_at=T0)
    source.settings = reading.check_settings(kind, SETTINGS[kind])
    reading.seal_credentials(source, CREDENTIALS.get(kind, {}))
    return source
