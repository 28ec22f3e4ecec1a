"""How methods look in figures: a colour each, which the registry has, and a marker."""

from study.methods.registry import METHODS, UNNAMED
from study.results.titles import uses_identities

# Methods that stand side by side in main figures differ in their marker, too: some of the colours are
# the same grey in print. Squares are methods that use true identities.
MARKERS = {
    "erm": "D",
    "cid": "o",
    "cid-power": "p",
    "cid-kernel": "<",
    "cid-knn": "v",
    "surprise": "^",
    "oracle": "s",
    "group-dro": "X",
    "last-layer": "P",
}
HOLLOW = {"oracle-tempered"}  # a square with a white face


def colour(method: str) -> str:
    """Return a method's colour; grey for a name that the registry does not have."""
    return METHODS.get(method, UNNAMED).colour


def marker(method: str) -> str:
    """Return a method's marker: by default a square if it uses true identities, else a disc."""
    return MARKERS.get(method, "s" if uses_identities(method) else "o")
