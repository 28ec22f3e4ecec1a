"""What a setting may be: every rule stands here once, and pydantic checks it.

The same types are used by the functions of the library, by the options of a training
(:mod:`cid.options`), by the settings of a method (:mod:`study.methods`) and by the schema of
params.yaml (:mod:`study.pipeline.params`). So one slip gets one sentence, wherever it is made.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from cid.names import suggest


def rule(words: str, kind: Any, *bounds: Any, names: Sequence[str] = ()) -> Any:
    """Make a type of setting whose errors say ``words``, what it must be.

    ``kind`` is a Python type or a ``Literal``, ``bounds`` are those of annotated-types. A text that is
    close to one of ``names`` gets it as a suggestion.
    """

    def explained(value, handler):
        try:
            return handler(value)
        except ValidationError:
            near = suggest(value, names) if isinstance(value, str) else ""
            shown = " ".join(repr(value).split())[:80]
            sentence = f"is {shown}; it must be {words}{near}"
            raise PydanticCustomError("must", "{sentence}", {"sentence": sentence}) from None

    return Annotated[(kind, *bounds, WrapValidator(explained))]


def one_of(*names: str) -> Any:
    """A type of setting that is one of some names."""
    words = ", ".join(names[:-1]) + " or " + names[-1] if len(names) > 1 else names[0]
    return rule(words, Literal[names], names=names)


def or_auto(words: str, kind: Any, *bounds: Any) -> Any:
    """As :func:`rule`, where the text "auto" is also allowed."""
    either = Annotated[(kind, *bounds)] | Literal["auto"] if bounds else kind | Literal["auto"]
    return rule(f"{words}, or auto", either, names=["auto"])


def satisfying(words: str, holds: Callable[[Any], bool]) -> Any:
    """A type of setting that holds any value for which ``holds`` is true."""

    def held(value):
        if not holds(value):
            raise ValueError(words)
        return value

    return rule(words, Any, AfterValidator(held))


Truth = rule("true or false", bool)
Text = rule("a text", str)
Positive = rule("a number above 0, 1e30 at most", float, Gt(0), Le(1e30))
NotNegative = rule("a number of at least 0", float, Ge(0))
AtLeast1 = rule("a number of at least 1", float, Ge(1))
Exponent = rule("a number from 0 to 1e6", float, Ge(0), Le(1e6))
Share = rule("a number in (0, 1]", float, Gt(0), Le(1))
ShareBelow1 = rule("a number of at least 0 and below 1", float, Ge(0), Lt(1))
Whole = rule("a whole number of at least 0", int, Ge(0), Le(2**63 - 1))
Count = rule("a whole number of at least 1", int, Ge(1), Le(2**63 - 1))
CountFrom2 = rule("a whole number of at least 2", int, Ge(2), Le(2**63 - 1))
CountOrAuto = or_auto("a whole number of at least 1", int, Ge(1))
NotNegativeOrAuto = or_auto("a number of at least 0", float, Ge(0))
PositiveOrAuto = or_auto("a number above 0", float, Gt(0), Le(1e30))
ExponentOrAuto = or_auto("a number from 0 to 1e6", float, Ge(0), Le(1e6))
# Kernel widths on the cosine scale: float64 cannot tell narrower ones apart.
Width = rule("a number from 1e-9 to 1e9", float, Ge(1e-9), Le(1e9))
WidthOrAuto = or_auto("a number from 1e-9 to 1e9", float, Ge(1e-9), Le(1e9))
ClassPrior = one_of("balanced", "empirical")

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind, config=STRICT)


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return a setting as a plain Python value, or raise a ValueError that names it.

    ``kind`` is a type of this module. A NumPy or torch scalar counts as the number that it holds, and a
    whole number can stand for a float.
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    try:
        return _adapter(kind).validate_python(plain)
    except ValidationError as error:
        if isinstance(plain, float) and plain.is_integer():  # an array of floats can hold a count
            with suppress(ValidationError):
                return _adapter(kind).validate_python(int(plain))
        raise ValueError(f"{name} {error.errors()[0]['msg']}") from None


class Options:
    """Base of a frozen dataclass of settings: every field is checked by its type when it is made."""

    def __post_init__(self):
        for name, kind in field_types(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), kind))


@cache
def field_types(cls: type[Options]) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return get_type_hints(cls, include_extras=True)


Some = TypeVar("Some", bound=Options)


def read(
    cls: type[Some], values: Mapping[str, Any], where: str, defaults: Mapping | None = None
) -> Some:
    """Make options of a class from ``values``, a section of a parameter file.

    ``where`` names the section in messages. ``defaults``, such as those of a model, take the place of
    the defaults of the class. Raises a ValueError of one sentence on an unknown key and on a value that
    its type refuses.
    """
    known = list(field_types(cls))
    for key in values:
        if key not in known:
            near = suggest(key, known)
            raise ValueError(f"{where}.{key} is unknown{near}; known: {', '.join(known)}")
    try:
        return cls(**{**(defaults or {}), **values})
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
