"""The application: all endpoints, errors in the shape of each API, and the guard around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from keywise import __version__
from keywise.errors import KeywiseError
from keywise.server import (
    anthropic_messages,
    attention_api,
    openai_chat,
    openai_files,
    openai_responses,
    page_api,
)
from keywise.server.api_errors import ApiError, ClientLeftError, convert_error
from keywise.server.guard import Guard, is_anthropic
from keywise.server.service import Service

CLIENT_LEFT = 499


def make_application(service: Service) -> Any:
    """Return the application, in ASGI.

    Parameters
    ----------
    service
        The state of the server.
    """

    @asynccontextmanager
    async def run(_application: FastAPI) -> AsyncGenerator[None, None]:
        reading = asyncio.create_task(_read_documents(service))
        yield
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        service.queue.close()

    # The pages of documentation would load scripts from elsewhere.
    application = FastAPI(
        title="keywise", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=run
    )
    for module in (openai_files, openai_chat, openai_responses, anthropic_messages, attention_api, page_api):
        application.include_router(module.make_router(service))
    application.add_exception_handler(ApiError, _handle_api_error)
    application.add_exception_handler(KeywiseError, _handle_keywise_error)
    application.add_exception_handler(RequestValidationError, _handle_invalid_request)
    application.add_exception_handler(HTTPException, _handle_http_error)
    application.add_exception_handler(ClientLeftError, _handle_client_left)
    application.add_exception_handler(Exception, _handle_unforeseen)
    return Guard(application, service.settings)


async def _read_documents(service: Service) -> None:
    """Let the model read the documents that the server was started with, before the first question."""
    documents = service.store.select_kept(service.answering.documents)
    if not documents:
        return
    async with aclosing(service.run(lambda job: service.answering.read(documents, job))) as events:
        async for _ in events:
            pass


def _respond(request: Request, error: ApiError) -> Response:
    body = error.to_anthropic() if is_anthropic(request.scope) else error.to_openai()
    return JSONResponse(body, error.status)


async def _handle_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return _respond(request, error)


async def _handle_keywise_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, KeywiseError):
        raise error
    return _respond(request, convert_error(error))


async def _handle_invalid_request(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return _respond(request, describe_invalid_request(error.errors()[0], request.headers.get("content-type")))


def describe_invalid_request(problem: dict[str, Any], content_type: str | None) -> ApiError:
    """Return the error of a request whose body has another shape than it should.

    Parameters
    ----------
    problem
        What is wrong, from Pydantic or FastAPI.
    content_type
        The header of the request; None without it.

    Examples
    --------
    >>> describe_invalid_request({"type": "extra_forbidden", "loc": ("body", "foo")}, "application/json").message
    "'foo' is not a field of this API, or this server does not support it: leave it out."
    """
    places = [str(place) for place in problem["loc"][1:]]
    param = ".".join(places) or None
    message = f"{problem['msg']}." if "msg" in problem else ""
    if problem["type"] == "json_invalid":
        # The place is a number of characters here.
        reason = problem["ctx"]["error"]
        message, param = f"The body is not JSON: {reason}, at character {int(places[0]) + 1}.", None
    elif problem["type"] == "extra_forbidden":
        message = f"{param!r} is not a field of this API, or this server does not support it: leave it out."
    elif param is None and not is_json(content_type):
        got = "there is no such header" if content_type is None else f"got {content_type!r}"
        message = f"The body must be JSON with the header Content-Type: application/json; {got}."
    elif param is None:
        message = "The body must be a JSON object."
    return ApiError(400, message, param, "invalid_request")


def is_json(content_type: str | None) -> bool:
    """Return whether a header names JSON.

    Parameters
    ----------
    content_type
        The header; None without it.

    Examples
    --------
    >>> is_json("application/json; charset=utf-8"), is_json("text/plain"), is_json(None)
    (True, False, False)
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _handle_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _respond(request, ApiError(error.status_code, f"{error.detail}.", None, None))


async def _handle_client_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _handle_unforeseen(request: Request, error: Exception) -> Response:
    message = f"Internal error: {type(error).__name__}."
    return _respond(request, ApiError(500, message, None, "server_error"))
