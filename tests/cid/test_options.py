"""Settings of training: what they may hold, and what is said of a slip. And names."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from cid.names import find, suggest
from cid.options import KINDS, NetworkOptions, of_kind
from cid.settings import read
from study.methods.robust import CVaRSettings, KLSettings
from study.methods.two_stage import LastLayerSettings

CVAR = CVaRSettings, "train.robust"
KL = KLSettings, "train.robust"
LAST = LastLayerSettings, "train.robust"
NETWORK = NetworkOptions, "train.network"


@pytest.mark.parametrize(
    ("of", "values", "message"),
    [
        (CVAR, {"alpa": 0.1}, r"train.robust.alpa is unknown \(did you mean 'alpha'\?\); known"),
        (CVAR, {"alpha": 1.5}, r"train.robust.alpha is 1.5; it must be a number in \(0, 1\]"),
        (KL, {"tilt": 0}, "train.robust.tilt is 0; it must be a number above 0"),
        (KL, {"tilt": float("inf")}, "tilt is inf; it must be a number above 0"),
        (KL, {"tilt": float("nan")}, "tilt is nan; it must be"),
        (LAST, {"draws": 2.5}, "draws is 2.5; it must be a whole number of at least 1"),
        (
            NETWORK,
            {"batch": 1},
            "train.network.batch is 1; it must be a whole number of at least 2",
        ),
        (NETWORK, {"epochs": True}, "epochs is True; it must be a whole number"),
        (NETWORK, {"alpha": True}, "alpha is True; it must be a number in"),
        (NETWORK, {"augment": 1}, "augment is 1; it must be true or false"),
        (NETWORK, {"through": "los"}, "through is 'los'; it must be sampler or loss"),
        (NETWORK, {"pretrained": None}, "pretrained is None; it must be auto, imagenet or none"),
        (NETWORK, {"jtt_upweight": 0.5}, "jtt_upweight is 0.5; it must be a number of at least 1"),
        (NETWORK, {"weight_decay": -1}, "weight_decay is -1; it must be a number of at least 0"),
        (NETWORK, {"epochs": 1}, "jtt_epochs is 2, more than the 1 epochs"),
    ],
)
def test_a_slip_is_one_sentence(of, values, message):
    with pytest.raises(ValueError, match=message) as error:
        read(of[0], values, of[1])
    assert "\n" not in str(error.value)


def test_a_section_goes_over_the_defaults_and_ints_may_stand_for_floats():
    options = read(NetworkOptions, {"tilt": 2, "epochs": 5}, "here", {"batch": 32, "epochs": 9})
    assert (options.tilt, options.epochs, options.batch) == (2.0, 5, 32)
    assert type(options.tilt) is float
    assert read(NetworkOptions, {"weight_decay": 0}, "here").weight_decay == 0
    assert read(NetworkOptions, {}, "here", {"through": "loss"}).through == "loss"
    with pytest.raises(ValueError, match="through is 'los'; it must be sampler or loss"):
        read(NetworkOptions, {}, "here", {"through": "los"})
    with pytest.raises(ValueError, match="alpha is 2; it must be"):
        CVaRSettings(alpha=2)


def test_a_kind_depends_on_its_own_options_and_on_those_of_all_kinds():
    parts = {kind: of_kind(NetworkOptions(), kind) for kind in KINDS}
    names = {field.name for field in fields(NetworkOptions)}
    assert set().union(*parts.values()) == names
    assert all(part.items() >= parts["weighted"].items() for part in parts.values())
    assert "alpha" in parts["cvar-dro"] and "alpha" not in parts["jtt"]
    assert {key for key in parts["jtt"] if key.startswith("jtt_")} == {
        name for name in names if name.startswith("jtt_")
    }


def test_a_name_is_found_or_the_nearest_is_named():
    assert find("method", "erm", {"erm": 1}) == 1
    message = r"^method 'emr' is unknown \(did you mean 'erm'\?\); known: erm, cid$"
    with pytest.raises(ValueError, match=message):
        find("method", "emr", {"erm": 1, "cid": 2})
    assert suggest("emr", ["erm"]) == " (did you mean 'erm'?)" and suggest("x", ["erm"]) == ""


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("cid.options", "numpy torch sklearn scipy pandas"),
        ("study.methods.registry", "torch sklearn scipy pandas"),
        ("study.faces.network_files", "numpy torch sklearn scipy pandas"),
    ],
)
def test_what_only_reads_names_and_facts_imports_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print(sorted(set({heavy.split()}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
