"""The DynamoDB API as a target."""

from engine.connections.dynamodb import DynamoDb, DynamoDbService
from engine.connections.tables import Service
from engine.targets.tables import TablesTarget


class DynamoDbTarget(TablesTarget, frozen=True, tag="dynamodb", kw_only=True):
    """Tables of an account and region."""

    place: DynamoDb

    def connect(self) -> Service:
        return DynamoDbService(self.place)

    @property
    def service_name(self) -> str:
        return "dynamodb"

    def where(self) -> str:
        """Return the region or address, and the suffix of its new tables."""
        suffix = f", tables named …{self.suffix}" if self.suffix else ""
        return f"DynamoDB in {self.place.region} at {self.place.endpoint or 'AWS'}{suffix}"
