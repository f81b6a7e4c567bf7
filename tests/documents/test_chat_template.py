"""Chat templates: rendered as transformers renders them, and ended where they do not end by themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from keywise.documents import chat_template
from keywise.documents.chat_template import render_chat
from keywise.documents.prompt import BEFORE_QUESTION, Prompt
from keywise.errors import ModelError
from keywise.models import LoadedModel
from tests.support.chat_models import CHAT_TEMPLATE, make_byte_tokenizer, make_chat_model

VARIABLES = {
    "messages": [{"role": "user", "content": "[the document]\n\nQuestion: [the question]"}],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_MACROS = (
    "{%- macro show(text, role='user') %}{{- '<' ~ role ~ '>' ~ text ~ '\n' }}{%- endmacro %}\n"
    "{%- set ns = namespace(found=false, index=0) %}\n"
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'user' and loop.index0 % 2 == 0 %}\n"
    "        {%- set ns.found = true %}{{- show(message.content, role=message['role']) }}\n"
    "    {%- elif message.tool_calls is defined %}{{- message.tool_calls | tojson(indent=2) }}\n"
    "    {%- else %}{{- raise_exception('alternate!') }}{% endif %}\n"
    "{%- endfor %}\n"
    "{%- if ns.found and tools is none %}{{ dict(a=1) | tojson }}{{ [1, 2] | join(',') }}{% endif %}\n"
    "{% generation %}{{ 'generated' | upper }}{% endgeneration %}"
)
WITH_BREAK = "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}{{ bos_token }}{{ eos_token.strip('<') }}"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML, WITH_MACROS, WITH_BREAK, "", "no message"])
def test_templates_render_as_in_transformers(template: str) -> None:
    messages = VARIABLES["messages"]
    others = {name: value for name, value in VARIABLES.items() if name != "messages"}
    expected, _ = render_jinja_template(conversations=[messages], chat_template=template, **others)
    assert render_chat(template, VARIABLES) == expected[0]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML])
def test_common_templates_need_no_process(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_render_in_process", lambda *_: pytest.fail("a process was started"))
    assert "[the document]" in render_chat(template, VARIABLES)


LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "template",
    [
        LOOP,
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 10**12 }}",
        "{{ 10**(10**9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ range(99999) | list | tojson(indent=9999) }}",
        "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% set messages = [1, 2, 3, 4, 5, 6, 7, 8] %}" + "{% for m in messages %}" * 15 + "{% endfor %}" * 15,
        "{{ lipsum(n=10**6) }}",
        "{% for a in range(70000) %}ab{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{% if x %}" * 2000 + "{% endif %}" * 2000,
        "{{ ''.__class__.__mro__[1].__subclasses__() | string | length / 0 }}",
        "{{ namespace(_x=1) }}",
        "{% include '/etc/hostname' %}",
        "{% bad",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no system message') }}",
        "{{ missing.attribute }}",
        "x" * 2_000_000,
    ],
)
def test_templates_that_fail_or_do_not_end_are_refused(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"\w"):
        render_chat(template, VARIABLES)
    assert time.monotonic() - started < chat_template.MAX_SECONDS + 5


def load(template: Any) -> LoadedModel:
    return LoadedModel(make_chat_model(), make_byte_tokenizer(template=template), "tiny", None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('a system message first') }}", "chat template .* a system message first"),
        (LOOP, "chat template .* takes longer than a second"),
        ("{% bad", "chat template"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats a message once and unchanged"),
        ("{% for m in messages %}{{ m.content }}{{ m.content[:8] }}[the document]{% endfor %}", "once and unchanged"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "once and unchanged"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "once and unchanged"),
        ("{% for m in messages %}{{ m.content.split('\n')[0] }}{% endfor %}", "once and unchanged"),
        ("{% for m in messages %}{{ m.content | replace('\n', ' ') }}{% endfor %}", "once and unchanged"),
        ({"other": CHAT_TEMPLATE}, "chat template"),
        (None, "must have a chat template"),
        ("", "must have a chat template"),
    ],
)
def test_prompts_of_unusable_templates_are_refused(template: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Prompt(load(template))
    assert caught.value.argument == "model"


def test_the_default_of_several_templates_is_used() -> None:
    prompt = Prompt(load({"default": CHAT_TEMPLATE, "tool_use": "{% bad"}))
    assert prompt.decode(prompt.encode_question("Why?", start_answer=False).token_ids) == f"{BEFORE_QUESTION}Why?"
