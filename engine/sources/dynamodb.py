"""Tables behind the DynamoDB API as a source."""

from urllib.parse import urlsplit

from engine.connections.dynamodb import RANGE_MIB, DynamoDb, DynamoDbService
from engine.connections.tables import Service
from engine.sources.port import Identity
from engine.sources.tables import TablesSource


class DynamoDbSource(TablesSource, frozen=True, tag="dynamodb", kw_only=True):
    """Tables with all their items; segments of about `range_mib` are read side by side.

    `consistent` reads see every write that ended before the run; they cost twice as much as eventual ones.
    """

    place: DynamoDb
    range_mib: int = RANGE_MIB
    consistent: bool = True

    def connect(self) -> Service:
        return DynamoDbService(self.place, range_mib=self.range_mib, consistent=self.consistent)

    def identity(self) -> Identity:
        """Return the address or region, and the tables that were named."""
        host = urlsplit(self.place.endpoint).hostname or f"dynamodb.{self.place.region}.amazonaws.com"
        return Identity("dynamodb", host, [f"{self.place.region}/{name}" for name in self.tables or ("*",)])
