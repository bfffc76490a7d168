"""Every kind of target, as a restore names it. What a kind needs of other packages is loaded when it is used."""

from engine.targets.backint import BackintTarget
from engine.targets.bucket import BucketTarget
from engine.targets.command import CommandTarget
from engine.targets.dynamodb import DynamoDbTarget
from engine.targets.files import FilesTarget
from engine.targets.mariadb import MariadbTarget
from engine.targets.mariadb_image import MariadbImageTarget
from engine.targets.mariadb_logs import MariadbLogsTarget
from engine.targets.milvus import MilvusTarget
from engine.targets.postgres import PostgresTarget
from engine.targets.postgres_data import PostgresDataTarget
from engine.targets.smb import SmbTarget
from engine.targets.tablestore import TablestoreTarget

AnyTarget = (
    FilesTarget
    | CommandTarget
    | BucketTarget
    | BackintTarget
    | DynamoDbTarget
    | TablestoreTarget
    | MariadbTarget
    | MariadbImageTarget
    | MariadbLogsTarget
    | PostgresTarget
    | PostgresDataTarget
    | MilvusTarget
    | SmbTarget
)
