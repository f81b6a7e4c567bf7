"""Chat templates: the text that transformers renders, or `ValueError`, within limits of time and length."""

import time
import zlib
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from keywise.documents import chat_template
from keywise.documents.chat_template import render_chat
from keywise.documents.template_renderer import MAX_CHARACTERS, make_environment
from keywise.util.foreign_errors import translate_errors
from tests.fuzz.targets.choices import Bytes
from tests.support.chat_models import CHAT_TEMPLATE

_VARIABLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "[the document]\n\nQuestion: [the question]"}],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}
_PIECED = 0xFF
"""First byte of inputs that choose pieces; it begins no text in UTF-8."""
_PIECES = (
    *("{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% else %}", "{% endif %}"),
    *(
        "{{ m.content }}",
        "{{ m['role'] | trim }}",
        "{{ messages[0]['content'][:8] }}",
        "{{ bos_token }}",
        "<|a|>",
        "\n",
    ),
    *("{%- set x = [1] %}", "{% set ns = namespace(a=1) %}", "{{ x }}", "{{ loop.index }}", "{{ loop.first }}"),
    *("{{ m.content.strip() + eos_token }}", "{{ [messages, messages] }}", "{{ 'a' ~ 1 }}", "{{ tools is none }}"),
    *("{{ raise_exception('no') }}", "{% macro f() %}", "{% endmacro %}", "{{ f() }}", "{{ 3 * 'a' }}", "{{ -"),
    *("{{ messages | tojson }}", "{{ messages | length }}", "{{ m.content.upper }}", "{{ m.__class__ }}", "{# a #}"),
    *("{% generation %}", "{% endgeneration %}", "{% raw %}", "{% endraw %}", "{% break %}", "{% filter upper %}"),
)
_PROCESSES = 400
"""One in so many templates that need a process gets one: it takes a hundred times as long as the others."""
_PLAIN_SECONDS = 2.0
_ENVIRONMENT = make_environment()


class _OtherRendererError(Exception):
    """Report a template that transformers does not render."""


def make_seeds() -> list[bytes]:
    """Return templates, and choices of pieces."""
    templates = [
        CHAT_TEMPLATE,
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ 'Be brief.' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim }}{% endfor %}",
        "{% for a in range(9) %}{{ a }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}",
    ]
    pieced = [bytes([_PIECED, first, second, third, 1]) for first, second, third in ((0, 5, 1), (9, 0, 6), (2, 9, 4))]
    return [*(template.encode() for template in templates), *pieced]


def execute(data: bytes) -> None:
    """Render a template, and compare the text with that of transformers if it is rendered in this process."""
    template = _write_pieces(data[1:]) if data[:1] == bytes([_PIECED]) else data.decode("utf-8", "replace")
    is_plain = chat_template._is_plain(_ENVIRONMENT, template, _VARIABLES)
    if not is_plain and zlib.crc32(data) % _PROCESSES:
        return
    started = time.process_time()
    try:
        text = render_chat(template, _VARIABLES)
    except ValueError:
        return
    assert len(text) <= MAX_CHARACTERS
    if is_plain:
        assert time.process_time() - started < _PLAIN_SECONDS, "a plain template takes long"
        others = {name: value for name, value in _VARIABLES.items() if name != "messages"}
        try:
            with translate_errors(_OtherRendererError):
                expected, _ = render_jinja_template([_VARIABLES["messages"]], chat_template=template, **others)
        except _OtherRendererError:
            return
        assert text == expected[0]


def _write_pieces(data: bytes) -> str:
    numbers = Bytes(data)
    return "".join(numbers.choose(_PIECES) for _ in range(len(data)))
