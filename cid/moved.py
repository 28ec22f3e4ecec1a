"""Old names of this package, which work for one more version and print one line of warning."""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module


def forwarder(module: str, moved: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module's ``__getattr__`` that finds names which have moved elsewhere.

    Parameters
    ----------
    module : str
        The module that used to hold the names: its ``__name__``.
    moved : mapping of str to str
        From each old name to the full new one, such as ``{"fit": "cid.training.fit"}``. The new
        module is imported when the name is used, and not before.

    Examples
    --------
    >>> import warnings
    >>> find = forwarder("cid.networks", {"MODELS": "cid.models.MODELS"})
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     models = find("MODELS")
    >>> str(caught[0].message)
    'cid.networks.MODELS moved to cid.models.MODELS'
    """

    @cache  # so that each name warns once
    def find_moved(name: str) -> object:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new_module, _, new_name = moved[name].rpartition(".")
        message = f"{module}.{name} moved to {moved[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(new_module), new_name)

    return find_moved
