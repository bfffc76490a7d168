"""The kinds of sources, by name. A new kind is a module here and a line in TYPES."""

from policies.kinds import backint, bucket, command, dynamodb, files, mariadb, milvus, postgres, smb, tablestore
from policies.kinds.port import SourceType

TYPES: dict[str, SourceType] = {
    "files": files.TYPE,
    "command": command.TYPE,
    "bucket": bucket.TYPE,
    "backint": backint.TYPE,
    "postgres": postgres.TYPE,
    "milvus": milvus.TYPE,
    "smb": smb.TYPE,
    "mariadb": mariadb.TYPE,
    "dynamodb": dynamodb.TYPE,
    "tablestore": tablestore.TYPE,
}
