"""What methods and networks are called in figures, tables and sentences, and which labels methods use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from study.methods.registry import METHODS

if TYPE_CHECKING:  # whoever only wants a title reads no table
    import pandas as pd


def method_title(method: str) -> str:
    """A method's name; the key itself where the registry has no such method."""
    return METHODS[method].title if method in METHODS else method


def marked_title(method: str) -> str:
    """A method's name in figures, marked where it uses true identities."""
    mark = " (true identities)" if uses_identities(method) else ""
    return method_title(method) + mark


def reference_title(table: pd.DataFrame) -> str:
    """What the differences in a table are to, as in "− ERM"; "its reference" where they differ in that.

    ``table`` is of :func:`study.results.inference.difference` or :func:`study.results.inference.area`;
    tables of old reports, whose differences are all to ERM, do not name it.
    """
    if "reference" not in table:
        return method_title("erm")
    references = table["reference"].dropna().unique()
    return method_title(references[0]) if len(references) == 1 else "its reference"


def level_title(level: float, kind: str) -> str:
    """A bias level as in ``bias 0.9``; data of the kind natural, which have none, are ``as found``."""
    return "as found" if kind == "natural" else f"bias {level:g}"


def network_title(network: str) -> str:
    """A network's name; for a network that is a file, the name of the file."""
    path, _, _ = network.partition("@")
    return path.rpartition("/")[2]


def uses_identities(method: str) -> bool:
    """Whether the weights or groups of a method are made from true identities."""
    return method in METHODS and METHODS[method].uses_identities


def without_identities(methods: Iterable[str]) -> list[str]:
    """The methods other than ERM that use no identities, each once: those that a proxy can serve."""
    return [m for m in dict.fromkeys(methods) if m != "erm" and not uses_identities(m)]


def labels_used(method: str, none: str = "none") -> str:
    """The labels that a method's weights or groups are made from, as in ``class, identity``.

    ``none`` is what to print where there are none. A method that the registry does not have is taken to
    use the class.
    """
    if method not in METHODS:
        return "class"
    return ", ".join(METHODS[method].uses) or none
