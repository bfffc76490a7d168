"""A Tablestore instance as a target."""

from engine.connections.tables import Service
from engine.connections.tablestore import Tablestore, TablestoreService
from engine.targets.tables import TablesTarget


class TablestoreTarget(TablesTarget, frozen=True, tag="tablestore", kw_only=True):
    """Tables of an instance, which itself must be there. Cells keep their versions."""

    place: Tablestore

    def connect(self) -> Service:
        return TablestoreService(self.place)

    @property
    def service_name(self) -> str:
        return "tablestore"

    def where(self) -> str:
        """Return the instance, and the suffix of its new tables."""
        suffix = f", tables named …{self.suffix}" if self.suffix else ""
        return f"the Tablestore instance {self.place.instance} at {self.place.endpoint}{suffix}"
