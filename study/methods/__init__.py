"""What is compared: every method is defined in one file of this folder, and found there.

A method's entry, a :class:`study.methods.base.Method`, holds every fact about it: name, title, colour,
source, the labels it uses, its settings with their defaults, and how it weighs or trains. To add one,
add a file here; :mod:`study.methods.registry` finds it.
"""

import pkgutil
from importlib import import_module

# study.source knows this call: who imports this package depends on all of its modules.
MODULES = [
    import_module(f"{__name__}.{found.name}")
    for found in pkgutil.iter_modules(__path__)
    if found.name not in ("base", "registry", "stacks")
]
