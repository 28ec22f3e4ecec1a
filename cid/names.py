"""Names that somebody typed: looked up, or refused with the right one or the nearest."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

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
