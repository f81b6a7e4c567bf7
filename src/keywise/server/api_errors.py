"""Errors as the APIs report them: a status and a body in the shape that each API's clients expect."""

from __future__ import annotations

from typing import Any, Final

from starlette.exceptions import HTTPException

from keywise.errors import FormatError, KeywiseError, ModelError

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(HTTPException):
    """Report a request that cannot be served.

    Parameters
    ----------
    status
        Status of HTTP.
    message
        What is wrong and what to do.
    param
        The part of the request at fault.
    code
        A word for programs.

    Examples
    --------
    >>> ApiError(404, "There is no such model.", "model", "model_not_found").to_openai()["error"]["code"]
    'model_not_found'
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        # FastAPI passes on errors of this kind alone while it reads a request.
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def to_openai(self) -> dict[str, Any]:
        """Return the body of an error as OpenAI's APIs and this server's own write it."""
        kind = _OPENAI_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_anthropic(self) -> dict[str, Any]:
        """Return the body of an error as Anthropic's API writes it."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
        is_named = self.param is None or self.message.startswith(f"{self.param} ")
        message = self.message if is_named else f"{self.param}: {self.message}"
        return {"type": "error", "error": {"type": kind, "message": message}}


class ClientLeftError(Exception):
    """Report that nobody waits for an answer any more."""


def convert_error(error: KeywiseError, param: str | None = None) -> ApiError:
    """Return an error of keywise as an error of the APIs.

    Parameters
    ----------
    error
        The error.
    param
        The part of the request at fault, where it has another name than the argument.

    Examples
    --------
    >>> convert_error(KeywiseError("max_tokens", "must be 1 or more", got=0)).status
    400
    """
    if isinstance(error, ModelError):
        return ApiError(500, str(error), None, "model_error")
    code = None
    if error.argument == "question" and "must be at most" in str(error):
        code = "context_length_exceeded"
    elif isinstance(error, FormatError):
        code = "invalid_file"
    name = error.argument if param is None else param
    return ApiError(400, error.describe(name), name, code)
