"""The root of the errors that clients get."""

from __future__ import annotations

from typing import ClassVar


class ForeseenError(Exception):
    """A bug. The log has an `internal error` event with the details.

    The root of all others. `str(error)` is what the client reads: it names the field and never holds an input's value.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    fix: ClassVar[str] = "Report it."
    """The remedy that `docs/errors.md` names."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        """`param` is the field at fault, for OpenAI's clients; None if there is none."""
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers or {}
        self.param = param
