"""Tables of an Alibaba Tablestore instance as a source."""

from urllib.parse import urlsplit

from engine.connections.tables import Service
from engine.connections.tablestore import RANGE_MIB, Tablestore, TablestoreService
from engine.sources.port import Identity
from engine.sources.tables import TablesSource


class TablestoreSource(TablesSource, frozen=True, tag="tablestore", kw_only=True):
    """Tables with every version of every cell, by primary key; ranges of about `range_mib` are read side by side."""

    place: Tablestore
    range_mib: int = RANGE_MIB

    def connect(self) -> Service:
        return TablestoreService(self.place, range_mib=self.range_mib)

    def identity(self) -> Identity:
        """Return the instance and the tables that were named."""
        host = urlsplit(self.place.endpoint).hostname or self.place.endpoint
        return Identity("tablestore", host, [f"{self.place.instance}/{name}" for name in self.tables or ("*",)])
