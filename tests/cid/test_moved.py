"""Names that have moved: each is found at its old place, with one line of warning."""

from __future__ import annotations

import warnings

import pytest

from cid import dlib, networks, recognition, training
from cid.moved import forwarder


def test_an_old_name_is_the_new_thing_and_warns_once():
    with pytest.warns(DeprecationWarning, match=r"^cid.networks.fit moved to cid.training.fit$"):
        assert networks.fit is training.fit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert networks.fit is training.fit


def test_what_a_module_still_holds_does_not_warn_and_what_nobody_had_is_missing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recognition.load_dlib is dlib.load_dlib
        with pytest.raises(AttributeError, match="module 'cid.networks' has no attribute 'fitt'"):
            _ = networks.fitt


@pytest.mark.parametrize("module", [networks, recognition])
def test_every_old_name_leads_somewhere(module):
    for name, place in module.MOVED.items():
        assert place.endswith(f".{name}")
        with pytest.warns(DeprecationWarning):
            forwarder("cid.old", module.MOVED)(name)
