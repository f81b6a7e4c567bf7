"""OpenAI's files and models: `/v1/files` and `/v1/models`."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request, Response, UploadFile

from keywise.server.api_errors import ApiError
from keywise.server.document_store import UPLOADED, StoredDocument
from keywise.server.guard import is_anthropic
from keywise.server.service import Service

PURPOSES: Final = ("assistants", "user_data", "vision", "batch", "fine-tune", "evals")


def make_router(service: Service) -> APIRouter:
    """Return the endpoints of files and models.

    Parameters
    ----------
    service
        The state of the server.
    """
    router = APIRouter()
    started = int(time.time())

    @router.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        model = describe_model(service.answering.model_name, started, for_anthropic=is_anthropic(request.scope))
        if is_anthropic(request.scope):
            return {"data": [model], "has_more": False, "first_id": model["id"], "last_id": model["id"]}
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name:path}")
    async def show_model(request: Request, name: str) -> dict[str, Any]:
        service.check_model(name)
        return describe_model(name, started, for_anthropic=is_anthropic(request.scope))

    @router.post("/v1/files")
    async def upload_file(file: UploadFile, purpose: Annotated[str, Form()] = "user_data") -> dict[str, Any]:
        if purpose not in PURPOSES:
            raise ApiError(
                400, f"It must be one of {', '.join(PURPOSES)}, got {purpose!r}.", "purpose", "invalid_value"
            )
        content = await read_upload(service, file)
        return describe_file(await service.add_document(file.filename or "", content, origin=UPLOADED))

    @router.get("/v1/files")
    async def list_files() -> dict[str, Any]:
        files = [describe_file(document) for document in service.store.list_documents()]
        first, last = (files[0]["id"], files[-1]["id"]) if files else (None, None)
        return {"object": "list", "data": files, "has_more": False, "first_id": first, "last_id": last}

    @router.get("/v1/files/{file_id}")
    async def show_file(file_id: str) -> dict[str, Any]:
        return describe_file(service.store.get(file_id))

    @router.get("/v1/files/{file_id}/content")
    async def get_content(file_id: str) -> Response:
        # Never the type of the file: a browser must not show it as a page.
        headers = {"content-disposition": "attachment"}
        content = await asyncio.to_thread(service.store.read_content, file_id)
        return Response(content, media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}")
    async def remove_file(file_id: str) -> dict[str, Any]:
        service.store.remove(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


async def read_upload(service: Service, file: UploadFile) -> bytes:
    """Return the content of an uploaded file.

    Raises
    ------
    ApiError
        It is too long.
    """
    limit = service.settings.limits.file_bytes
    if file.size is not None and file.size > limit:
        raise ApiError(413, f"A file must have at most {limit:,} bytes, got {file.size:,}.", "file", "file_too_large")
    return await file.read()


def describe_model(name: str, started: int, *, for_anthropic: bool) -> dict[str, Any]:
    """Return the model as one of the APIs describes it."""
    if for_anthropic:
        created = datetime.fromtimestamp(started, UTC).isoformat()
        return {"type": "model", "id": name, "display_name": name, "created_at": created, "lifecycle": "active"}
    return {"id": name, "object": "model", "created": started, "owned_by": "keywise"}


def describe_file(document: StoredDocument) -> dict[str, Any]:
    """Return a document as OpenAI's API describes files."""
    return {
        "id": document.id,
        "object": "file",
        "bytes": document.size_bytes,
        "created_at": document.created_at,
        "filename": document.name,
        "purpose": "user_data",
        "status": "processed",
        "status_details": "; ".join(document.warnings) or None,
    }
