"""The base of every refusal: a request that is understood, and that a rule of the product forbids now."""

from typing import Any


class Refused(Exception):
    """A rule says no. `code` is stable and for programs, the text says what to do, `detail` goes into the answer."""

    code = "refused"

    def __init__(self, message: str, *, code: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.code = code or self.code
        self.detail = detail
