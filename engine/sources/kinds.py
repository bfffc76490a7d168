"""Every kind of source, as a job names it. What a kind needs of other packages is loaded when it is used."""

from engine.sources.command import CommandSource
from engine.sources.files import FilesSource

AnySource = FilesSource | CommandSource
