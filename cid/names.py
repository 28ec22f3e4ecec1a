"""Names that somebody typed: looked up, or refused with the right one or the nearest."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar
from warnings import warn

Found = TypeVar("Found")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    near = get_close_matches(str(word), [str(name) for name in known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def find(what: str, name: str, known: Mapping[str, Found]) -> Found:
    """Look up a name, or raise a ValueError that says which ``what``, such as "method", there are."""
    if isinstance(name, str) and name in known:
        return known[name]
    remedy = f"known: {', '.join(known)}" if isinstance(name, str) else "a name is one text"
    raise ValueError(f"{what} {name!r} is unknown{suggest(name, known)}; {remedy}")


def moved(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a module's ``__getattr__`` that finds names which moved, with one line of warning.

    ``places`` maps a name to the module that holds it now.
    """

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(
            f"{module}.{name} moved to {places[name]}.{name}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(places[name]), name)

    return __getattr__
