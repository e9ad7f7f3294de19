"""What the requests of every API here have in common: exact types, and refusals that name the field."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from serve.http.errors import HTTPError
from serve.registry import MAX_ADAPTERS

UNSUPPORTED = "unsupported_parameter"
INVALID = "invalid_value"
MAX_MODEL_NAME = 256
MAX_STOPS = 16
MAX_STOP_LENGTH = 512
MAX_SEED = 2**32 - 2
MAX_PRIORITY = 10
MAX_TIMEOUT = 24 * 3600.0
MAX_ADAPTER_SCALE = 100.0

# Known fields that change nothing, each with a test for the values of which that is true. None is always one of them.
Inert = Mapping[str, Callable[[object], bool]]


def one_of(*values: object) -> Callable[[object], bool]:
    """A test for these very values: 1 is not True here."""
    return lambda given: any(type(given) is type(value) and given == value for value in values)


def anything(_given: object) -> bool:
    """A test that every value passes."""
    return True


class Wire(BaseModel):
    """Exact types: a number in quotes is no number. A field that is null is a field left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    INERT: ClassVar[Inert] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_inert(cls, raw: object) -> object:
        """Leave out what is null or inert; a known field that does ask for something stays, and is refused later."""
        if not isinstance(raw, dict):
            return raw
        return {
            name: value
            for name, value in raw.items()
            if value is not None and not (name in cls.INERT and cls.INERT[name](value))
        }


def refuse(message: str, code: str = INVALID, **named: object) -> PydanticCustomError:
    """What a validator raises: ``message`` may hold ``{names}`` of ``named``."""
    return PydanticCustomError(code, message, dict(named))


def text_of(
    content: object, *, also: frozenset[str] = frozenset(), kinds: frozenset[str] = frozenset({"text"})
) -> object:
    """The text of a message's content: a string, or a list of text parts, joined by line ends.

    Args:
        content: As it came.
        also: Fields that a text part may have besides ``type`` and ``text``.
        kinds: The types of a text part.
    """
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            named = f"Parts of type {kind[:40]!r}" if isinstance(kind, str) else "Parts without a type"
            raise refuse("{named} are not supported, only text.", UNSUPPORTED, named=named)
        given = {name for name, value in part.items() if value is not None}
        if not isinstance(part.get("text"), str) or given - {"type", "text"} - also:
            raise refuse("A text part has the fields `type` and `text`.")
        texts.append(part["text"])
    return "\n".join(texts)


class TextPart(Wire):
    """A part of a message's content, as :func:`text_of` takes it."""

    type: Literal["text"]
    text: str


class AdapterChoice(Wire):
    """One of ``adapters``: a LoRA adapter of the store, and what its effect is multiplied by."""

    name: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    scale: float = Field(1.0, ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE)


def _adapter_objects(given: object) -> object:
    """A name alone stands for the adapter at scale 1."""
    return [{"name": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given


_AdapterName = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME)]


class Scheduled(Wire):
    """Our own fields of every request of OpenAI's API that makes text.

    ``adapters`` are computed with, beside those in the model's name. Higher ``priority`` is served first. ``timeout``
    is in seconds: an answer that cannot begin by then is refused with 429, one that has begun ends with ``length``.
    """

    adapters: Annotated[
        list[AdapterChoice],
        Field(max_length=MAX_ADAPTERS),
        BeforeValidator(
            _adapter_objects,
            json_schema_input_type=Annotated[list[_AdapterName | AdapterChoice], Field(max_length=MAX_ADAPTERS)],
        ),
    ] = Field(default_factory=list)
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    timeout: float | None = Field(None, gt=0, le=MAX_TIMEOUT)

    @property
    def adapter_scales(self) -> tuple[tuple[str, float], ...]:
        """``adapters`` as the supervisor takes them."""
        return tuple((adapter.name, adapter.scale) for adapter in self.adapters)


_Request = TypeVar("_Request", bound=Wire)


def validate(kind: type[_Request], raw: Mapping[str, Any]) -> _Request:
    """``raw`` as a request.

    Raises:
        HTTPError: 400, naming the field: ``unsupported_parameter`` or ``invalid_value``.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        # What was given is left out: it may be part of a prompt.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    # A kind of a union stands in angle brackets: it is no field of the request.
    fields = [part for part in first["loc"][:-1] if not str(part).startswith("<")] + list(first["loc"][-1:])
    param = ".".join(str(part)[:64] for part in fields)
    match first["type"]:
        case "extra_forbidden":
            manner = " with this value" if param in kind.INERT else ""
            raise HTTPError(400, UNSUPPORTED, f"`{param}` is not supported{manner}.", "Leave it out.", param)
        case "missing":
            raise HTTPError(400, "missing_required_parameter", f"`{param}` is missing.", param=param)
        case kind_of_error:
            code = UNSUPPORTED if kind_of_error == UNSUPPORTED else INVALID
            message = f"{param}: {first['msg']}" if param else first["msg"]
            raise HTTPError(400, code, message, param=param)
