"""A model's own chat template, rendered in a sandbox.

The template comes with the model's file, so it is a stranger's program: Jinja's immutable sandbox keeps it from
reaching into Python (CVE-2024-34359), and time, output and repetition are capped. The names and filters it may use
are those that Hugging Face's ``apply_chat_template`` offers.
"""

import ctypes
import json
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localllm.errors import RequestError

_MAX_SECONDS = 5.0
_MAX_TEMPLATE = 1 << 20  # characters of the template
_MAX_OUTPUT = 16 << 20  # characters of the rendered prompt
_MAX_REPEAT = 1 << 20  # characters or items made by one multiplication


class _TimeIsUpError(BaseException):
    """Raised inside the rendering thread; not an Exception, so that a template's code cannot swallow it."""


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's text for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - the attribute's type is Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" and (not numbers or abs(right) > 64):
            raise TemplateError("the template raises to too high a power")
        if operator == "%" and not numbers and len(left) > _MAX_REPEAT:
            raise TemplateError("the template formats too long a text")
        if operator == "*" and not numbers:
            length, times = (len(left), right) if isinstance(right, int) else (len(right), left)
            if length * times > _MAX_REPEAT:
                raise TemplateError("the template repeats a text too often")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The Jinja source from the model's metadata.
        bos_token: Text of BOS, which many templates write themselves.
        eos_token: Text of EOS.

    Raises:
        RequestError: The source is not a valid template.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > _MAX_TEMPLATE:
            raise RequestError(f"The model's chat template is too long ({len(source)} characters).")
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (TemplateSyntaxError, RecursionError) as error:
            raise RequestError(f"The model's chat template is damaged: {error}.") from error
        self._names = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        max_seconds: float = _MAX_SECONDS,
        **names: Any,
    ) -> str:
        """The prompt for ``messages``.

        Args:
            messages: Dictionaries with ``role`` and ``content``.
            add_generation_prompt: End with the words that open the assistant's turn.
            max_seconds: Longest time it may take.
            names: More names for the template (``tools``, ``enable_thinking``, …).

        Raises:
            RequestError: The template refuses these messages, fails, or takes too long.
        """
        result: list[str] = []
        failure: list[Exception] = []

        def work() -> None:
            try:
                result.append(self._render(messages, add_generation_prompt=add_generation_prompt, **names))
            except Exception as error:  # noqa: BLE001 - handed to the caller's thread, where it is raised
                failure.append(error)
            except _TimeIsUpError:
                return

        thread = threading.Thread(target=work, name="chat-template", daemon=True)
        thread.start()
        thread.join(max_seconds)
        if thread.is_alive() and thread.ident is not None:
            _stop_thread(thread.ident)
            raise RequestError(f"The model's chat template took longer than {max_seconds:g} s.", param="messages")
        if not failure:
            return result[0]
        match failure[0]:
            case (
                TemplateError()
                | TypeError()
                | ValueError()
                | KeyError()
                | AttributeError()
                | ArithmeticError() as error
            ):
                raise RequestError(f"The model's chat template refuses this: {error}.", param="messages") from error
            case error:
                raise error

    def _render(self, messages: Sequence[dict[str, Any]], **names: Any) -> str:
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(messages=list(messages), **self._names, **names):
            length += len(piece)
            if length > _MAX_OUTPUT:
                raise TemplateError("its output is too long")
            pieces.append(piece)
        return "".join(pieces)


def _stop_thread(ident: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(_TimeIsUpError))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own tojson escapes < > & for HTML, which would change the prompt.
    if isinstance(value, Undefined):
        raise TemplateError("tojson of an undefined name")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
