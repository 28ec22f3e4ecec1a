"""How methods look everywhere: one colour, one marker and one name each."""

from study.experiment.methods import METHODS

# Okabe & Ito's colour-blind-safe palette for the methods under study.
COLOURS = {
    "erm": "#4d4d4d",
    "balanced": "#8c8c8c",
    "inverse-density": "#cc79a7",
    "cid": "#d55e00",
    "cid-power": "#8c3b00",
    "cid-kernel": "#e69f00",
    "cid-knn": "#56b4e9",
    "surprise": "#0072b2",
    # Paul Tol's muted palette for the methods that they are compared with.
    "cvar-dro": "#999933",
    "kl-dro": "#ddcc77",
    "jtt": "#882255",
    "lff": "#aa4499",
    "cluster-dro": "#332288",
    "afr": "#88ccee",
    "selective": "#6699cc",
    "xrm": "#cc6677",
    "ula": "#aa7744",
    "erase": "#77aadd",
    "oracle": "#009e73",
    "oracle-tempered": "#66c2a5",
    "group-dro": "#117733",
    "last-layer": "#44aa99",
}
SPARE_COLOURS = ("#7b3294", "#a6611a", "#5e3c99", "#b2182b", "#01665e", "#80146e", "#3f6d2a")

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
    """Return a method's colour; one without an entry always gets the same spare colour."""
    if method in COLOURS:
        return COLOURS[method]
    return SPARE_COLOURS[sum(method.encode()) % len(SPARE_COLOURS)]


def marker(method: str) -> str:
    """Return a method's marker: by default a square if it uses true identities, else a disc."""
    return MARKERS.get(method, "s" if uses_identities(method) else "o")


def uses_identities(method: str) -> bool:
    """Whether a method uses the true identities of the training images."""
    return method in METHODS and "identity" in METHODS[method].sees


def short_title(method: str) -> str:
    """Return a method's name."""
    return METHODS[method].title if method in METHODS else method


def title(method: str) -> str:
    """Return a method's name in figures, marked where it uses true identities."""
    marked = " (true identities)" if uses_identities(method) else ""
    return short_title(method) + marked
