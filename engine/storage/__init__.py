"""Where objects are kept: one port, its implementations and their wrappers; importing this loads no S3 client."""

from engine.storage.directory import Directory
from engine.storage.location import Location, open_storage
from engine.storage.memory import Call, Memory
from engine.storage.port import Bytes, Refusal, Storage, Stored
from engine.storage.probe import APPLICATION_LEVEL, IMMUTABLE, Capabilities, clean_up, probe
from engine.storage.retry import Retrying
from engine.storage.throttle import Budget

__all__ = [
    "APPLICATION_LEVEL",
    "IMMUTABLE",
    "Budget",
    "Bytes",
    "Call",
    "Capabilities",
    "Directory",
    "Location",
    "Memory",
    "Refusal",
    "Retrying",
    "Storage",
    "Stored",
    "clean_up",
    "open_storage",
    "probe",
]
