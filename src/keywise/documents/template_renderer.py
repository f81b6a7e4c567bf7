"""A program that renders a chat template within limits of time, memory and output.

It imports jinja2 and nothing of keywise. Templates come from model files: a loop, a multiplication or a format with a
large width can keep any interpreter of them at work for ever, so that only a process that can be ended is safe.
"""

from __future__ import annotations

# ruff: noqa: PLC0415  (jinja2 is found after the search path is known)
import json
import resource
import sys
from datetime import datetime
from typing import Any

CPU_SECONDS = 1
MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 16


def make_environment() -> Any:
    """Return an environment of jinja2 with what chat templates may use, as transformers makes it."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """The tag around what the model has written; it renders as its content."""

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def format_now(form: str) -> str:
        return datetime.now().strftime(form)

    class Dict:
        """The function ``dict`` of templates, without the attributes of Python's type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names that begin with an underscore, which could reach Python's own."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args  # so that a template may call a name `self`
            values = dict(*rest, **kwargs)
            for name in values:
                check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    def check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a name in a namespace must not begin with an underscore: {name!r}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=format_now, dict=Dict(), namespace=Namespace
    )
    return environment


def render(environment: Any, template: str, variables: dict[str, Any]) -> str:
    """Return a rendered template.

    Parameters
    ----------
    environment
        From `make_environment`.
    template
        The template.
    variables
        Values of its variables.

    Raises
    ------
    ValueError
        The template renders to too many characters.
    jinja2.TemplateError
        The template is wrong, or raises an error.
    """
    parts: list[str] = []
    characters = 0
    for part in environment.from_string(template).generate(**variables):
        characters += len(part)
        if characters > MAX_CHARACTERS:
            raise ValueError(f"it renders to more than {MAX_CHARACTERS:,} characters")
        parts.append(part)
    return "".join(parts)


def main() -> None:
    """Render the template on the standard input and print the result as JSON."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    for limit, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    sys.stdout.write(json.dumps({"text": render(make_environment(), request["template"], request["variables"])}))


def report_error(kind: type[BaseException], error: BaseException, _traceback: Any) -> None:
    """Print an error that ends this program as JSON; its message can be long."""
    sys.stdout.write(json.dumps({"error": f"{kind.__name__}: {str(error)[:200]}"}))


if __name__ == "__main__":
    sys.excepthook = report_error
    main()
