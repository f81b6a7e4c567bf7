"""Mails and mailboxes: text, or `FormatError`, within the limits of the conversion."""

from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return a mail, one with parts, and a mailbox."""
    return [
        b"From: Ann <a@b.c>\nSubject: =?utf-8?q?L=C3=A4mp?=\nDate: Mon, 1 Jan 2024 10:00:00 +0000\nContent-Type: "
        b"text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nIt is =E9lit.\n\n-- \nAnn\n",
        b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html\n\n<p>Wet.\n"
        b"--x\nContent-Type: message/rfc822\n\nSubject: in\n\nDry.\n--x\nContent-Disposition: attachment; "
        b"filename*=utf-8''a\nContent-Transfer-Encoding: base64\n\nYWJj\n--x--\n",
        b"From a@b Mon Jan  1 10:00:00 2024\nTo: b\n\n>From here.\n\nFrom c@d Mon Jan  1 11:00:00 2024\nCc: e\n\nHi.\n",
    ]


def execute(data: bytes) -> None:
    """Convert a mail or a mailbox."""
    convert(data, ".mbox" if data.startswith(b"From ") else ".eml")
