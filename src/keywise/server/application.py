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
    first = error.errors()[0]
    places = [str(place) for place in first["loc"] if place != "body"]
    param = ".".join(places) or None
    return _respond(request, ApiError(400, f"{first['msg']}.", param, "invalid_request"))


async def _handle_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _respond(request, ApiError(error.status_code, f"{error.detail}.", None, None))


async def _handle_client_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _handle_unforeseen(request: Request, error: Exception) -> Response:
    message = f"Internal error: {type(error).__name__}."
    return _respond(request, ApiError(500, message, None, "server_error"))
