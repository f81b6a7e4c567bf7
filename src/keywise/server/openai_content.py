"""Content parts of OpenAI's APIs: texts, and files by their identifier or in base64."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from keywise.server.api_errors import ApiError
from keywise.server.request_parts import RequestModel
from keywise.server.service import Service, decode_file

TEXT_TYPES = ("text", "input_text", "output_text", "refusal")


class ContentPart(RequestModel):
    """A part of a message: a text or a file, as chat completions or responses write it."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None
    file: dict[str, Any] | None = None
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


async def read_content_parts(
    service: Service, content: str | list[ContentPart] | None, param: str
) -> tuple[str, tuple[str, ...]]:
    """Return the text of a message, and the identifiers of the documents that came with it.

    Files in base64 are converted and kept.

    Parameters
    ----------
    service
        The state of the server.
    content
        The content of the message.
    param
        The message, for errors.

    Raises
    ------
    ApiError
        A part is an image, audio or of another kind, or a file cannot be read.
    """
    if content is None or isinstance(content, str):
        return content or "", ()
    texts: list[str] = []
    documents: list[str] = []
    for number, part in enumerate(content):
        place = f"{param}.content[{number}]"
        if part.type in TEXT_TYPES:
            text = part.refusal if part.type == "refusal" else part.text
            if text is None:
                raise ApiError(400, "A text part must have a text.", place, "invalid_value")
            texts.append(text)
        elif part.type in {"file", "input_file"}:
            documents.append(await _read_file(service, part, place))
        elif "image" in part.type or "audio" in part.type or "video" in part.type:
            message = f"This server reads documents, not parts of the type {part.type!r}: extract their text first."
            raise ApiError(400, message, place, "unsupported_content")
        else:
            raise ApiError(400, f"A part must be a text or a file, got {part.type!r}.", place, "unsupported_content")
    if len(documents) > service.settings.limits.files_per_request:
        limit = service.settings.limits.files_per_request
        raise ApiError(400, f"A message must have at most {limit} files.", param, "too_many_files")
    return "\n".join(texts), tuple(documents)


async def _read_file(service: Service, part: ContentPart, place: str) -> str:
    """Return the identifier of the document in a part."""
    fields = part.file if part.file is not None else {**part.model_dump(), **(part.model_extra or {})}
    if fields.get("file_url"):
        message = "This server fetches nothing from the network: send the file, or upload it to /v1/files."
        raise ApiError(400, message, place, "unsupported_content")
    file_id, data, name = fields.get("file_id"), fields.get("file_data"), fields.get("filename")
    if isinstance(file_id, str):
        return service.store.get(file_id).id
    if not isinstance(data, str):
        raise ApiError(
            400, "A file must have a file_id, or a filename and file_data in base64.", place, "invalid_value"
        )
    if not isinstance(name, str) or not name:
        raise ApiError(400, "A file must have a filename: its suffix tells the format.", place, "invalid_value")
    return (await service.add_document(name, decode_file(data, place), param=place)).id
