"""Chat templates of models, rendered within limits: a model file must not keep a program at work for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from keywise.documents import template_renderer
from keywise.documents.template_renderer import CPU_SECONDS, make_environment, render
from keywise.util.foreign_errors import translate_errors
from keywise.util.optional_imports import require_modules

MAX_TEMPLATE_CHARACTERS: Final = 1 << 20
# The process waits for CPU time where the machine is busy.
MAX_SECONDS: Final = 20 * CPU_SECONDS

# A template of these parts alone takes time and memory in proportion to its length and its variables.
_MAX_PLAIN_CHARACTERS: Final = 10_000
_MAX_VARIABLE_CHARACTERS: Final = 200
_PLAIN_NODES: Final = (
    "Template",
    "Output",
    "TemplateData",
    "For",
    "If",
    "CondExpr",
    "Name",
    "Const",
    "List",
    "Tuple",
    "Getattr",
    "Getitem",
    "Slice",
    "Add",
    "Concat",
    "And",
    "Or",
    "Not",
    "Compare",
    "Operand",
    "Test",
    "Filter",
    "Call",
)
_PLAIN_FILTERS: Final = frozenset({"trim", "length", "first", "last", "upper", "lower"})
_PLAIN_METHODS: Final = frozenset({"strip", "lstrip", "rstrip", "startswith", "endswith"})
_MAX_DEPTH: Final = 50


def render_chat(template: str, variables: dict[str, Any]) -> str:
    """Return a rendered chat template.

    Simple templates are rendered in this process, all others in a process of their own that is ended after a second
    of work or at a gigabyte of memory.

    Parameters
    ----------
    template
        The template, in the language of jinja2.
    variables
        JSON values: ``messages``, ``add_generation_prompt``, special tokens.

    Raises
    ------
    ValueError
        The template is wrong, raises an error, or exceeds a limit; the message says which.
    ModelError
        jinja2 is not installed.

    Examples
    --------
    >>> render_chat("{% for m in messages %}<{{ m['content'] }}>{% endfor %}", {"messages": [{"content": "hello"}]})
    '<hello>'
    """
    require_modules("app", "jinja2")
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(f"it has more than {MAX_TEMPLATE_CHARACTERS:,} characters")
    environment = make_environment()
    if _is_plain(environment, template, variables):
        with translate_errors(ValueError):
            return render(environment, template, variables)
    return _render_in_process(template, variables)


def _render_in_process(template: str, variables: dict[str, Any]) -> str:
    request = json.dumps({"path": sys.path, "template": template, "variables": variables})
    command = [sys.executable or "python3", "-I", "-S", template_renderer.__file__]
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=MAX_SECONDS, check=False)
        reply = json.loads(done.stdout) if done.stdout else {"error": _describe_end(done.returncode)}
    except subprocess.TimeoutExpired:
        reply = {"error": f"it takes longer than {MAX_SECONDS} seconds"}
    except (OSError, ValueError) as error:
        reply = {"error": f"the process that renders it failed: {error}"}
    if "error" in reply:
        raise ValueError(reply["error"])
    text: str = reply["text"]
    return text


def _describe_end(code: int) -> str:
    if code < 0:
        return "it takes longer than a second, or too much memory"
    return "it takes too much memory"


def _is_plain(environment: Any, template: str, variables: dict[str, Any]) -> bool:
    """Return whether a template's work grows with its length alone: its only loops are over the one message."""
    if len(template) > _MAX_PLAIN_CHARACTERS:
        return False
    if any(isinstance(value, str) and len(value) > _MAX_VARIABLE_CHARACTERS for value in variables.values()):
        return False
    try:
        with translate_errors(ValueError):
            tree = environment.parse(template)
    except ValueError:
        return False  # the process of its own says what is wrong
    pending = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > _MAX_DEPTH or type(node).__name__ not in _PLAIN_NODES or not _has_plain_fields(node):
            return False
        pending += [(child, depth + 1) for child in node.iter_child_nodes()]
    return len(variables.get("messages", ())) <= 1


def _has_plain_fields(node: Any) -> bool:
    kind = type(node).__name__
    if kind == "For":
        is_over_messages = type(node.iter).__name__ == "Name" and node.iter.name == "messages"
        return is_over_messages and not node.recursive and getattr(node.target, "name", "messages") != "messages"
    if kind == "Filter":
        return node.name in _PLAIN_FILTERS
    if kind == "Call":
        callee = node.node
        if node.dyn_args is not None or node.dyn_kwargs is not None or node.kwargs:
            return False
        if type(callee).__name__ == "Name":
            return bool(callee.name == "raise_exception")
        return type(callee).__name__ == "Getattr" and callee.attr in _PLAIN_METHODS
    return True
