"""Every kind of target, as a restore names it. What a kind needs of other packages is loaded when it is used."""

from engine.targets.command import CommandTarget
from engine.targets.files import FilesTarget

AnyTarget = FilesTarget | CommandTarget
