"""Blocks of mails: EML and MBOX files. A mail's subject is the heading of its text."""

from __future__ import annotations

import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.encodings import SINGLE_BYTE_NAMES, decode_text, is_utf8
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.extract.html import add_html
from keywise.documents.extract.plain import add_plain_text

MAX_DEPTH: Final = 5
_FIELDS: Final = ("From", "To", "Cc", "Date")
_START: Final = re.compile(rb"(?:\A|(?<=\n)\r?\n)From [^\r\n]+\r?\n")
_SIGNATURE: Final = re.compile(r"^-- ?\r?\n", re.MULTILINE)
_QUOTED_START: Final = re.compile(rb"^>(>*From )", re.MULTILINE)


def extract(content: bytes) -> Extracted:
    r"""Return the text and blocks of an EML or MBOX file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It has no mail.

    Examples
    --------
    >>> extract(b"From: Ann\nSubject: Lamp\n\nIt is lit.\n").text
    'Lamp\n\nFrom: Ann\n\nIt is lit.'
    """
    builder = BlockBuilder()
    for mail in _iterate_mails(content):
        message = BytesParser(EmailMessage, policy=email.policy.default).parsebytes(mail)
        if not message.keys():
            continue
        _add_mail(builder, message, 0)
    if not builder.blocks:
        raise UnreadableFileError("it has no mail with text")
    return Extracted(builder.text, tuple(builder.blocks))


def _iterate_mails(content: bytes) -> Iterator[bytes]:
    starts = list(_START.finditer(content))
    if not starts or starts[0].start() != 0:
        yield content
        return
    ends = [*(start.start() for start in starts[1:]), len(content)]
    for start, end in zip(starts, ends, strict=True):
        yield _QUOTED_START.sub(rb"\1", content[start.end() : end])


def _add_mail(builder: BlockBuilder, message: EmailMessage, depth: int) -> None:
    builder.add_heading(_read_field(message, "Subject"), level=0)
    for name in _FIELDS:
        value = _read_field(message, name)
        if value:
            builder.add(BlockKind.MAIL_LINE, f"{name}: {value}")
    _add_body(builder, message)
    for part in message.walk():
        if part.get_content_type() == "message/rfc822" and depth < MAX_DEPTH:
            inner = part.get_payload()
            if isinstance(inner, list) and inner and isinstance(inner[0], EmailMessage):
                _add_mail(builder, inner[0], depth + 1)
        elif part.get_content_disposition() == "attachment" and part.get_filename():
            builder.add(BlockKind.MAIL_LINE, f"Attachment: {part.get_filename()}")
        elif part.get_content_type() in ("application/pgp-encrypted", "application/pkcs7-mime"):
            builder.add(BlockKind.MAIL_LINE, "The text of this mail is encrypted.")


def _read_field(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())
    except (ValueError, LookupError, AttributeError, IndexError, TypeError):  # a damaged field
        return ""


def _add_body(builder: BlockBuilder, message: EmailMessage) -> None:
    """Append a mail's text: the plain one, or the HTML one if there is no other."""
    for kind in ("plain", "html"):
        body = message.get_body((kind,))
        if not isinstance(body, EmailMessage):
            continue
        text = _decode(body)
        if not any(map(str.isalnum, text)):
            continue
        if body.get_content_subtype() == "html":
            add_html(builder, text)
        else:
            text, *signature = _SIGNATURE.split(text, maxsplit=1)
            add_plain_text(builder, text, has_titles=False)
            for line in "".join(signature).splitlines():
                builder.add(BlockKind.LINE, line)
        return


def _decode(part: EmailMessage) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    charset = part.get_content_charset()
    # Bytes above 127 that are valid UTF-8 hardly ever mean anything else.
    if charset in SINGLE_BYTE_NAMES and is_utf8(content):
        return content.decode("utf-8")
    try:
        return content.decode(charset) if charset else decode_text(content)[0]
    except (LookupError, UnicodeError):
        return decode_text(content)[0]
