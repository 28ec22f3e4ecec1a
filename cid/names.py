"""TODO."""

from __future__ import annotations

from difflib import get_close_matches


def suggest(word: str, known) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    near = get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
