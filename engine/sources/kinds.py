"""Every kind of source, as a job names it. What a kind needs of other packages is loaded when it is used."""

from engine.sources.backint import BackintSource
from engine.sources.bucket import BucketSource
from engine.sources.command import CommandSource
from engine.sources.dynamodb import DynamoDbSource
from engine.sources.files import FilesSource
from engine.sources.mariadb import MariadbImageSource, MariadbSource
from engine.sources.mariadb_logs import MariadbLogsSource
from engine.sources.milvus import MilvusSource
from engine.sources.postgres import PostgresSource
from engine.sources.smb import SmbSource
from engine.sources.tablestore import TablestoreSource

AnySource = (
    FilesSource
    | CommandSource
    | BucketSource
    | BackintSource
    | DynamoDbSource
    | TablestoreSource
    | MariadbSource
    | MariadbImageSource
    | MariadbLogsSource
    | PostgresSource
    | MilvusSource
    | SmbSource
)
