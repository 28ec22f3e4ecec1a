"""How linear heads are trained, beyond weights: the kinds of training and their settings."""

from dataclasses import dataclass, fields

from cid import options
from cid.options import POSITIVE, SHARE, Options, at_least, one_of, setting

# Every kind of training of heads: those of networks, and what only heads are trained by.
HEADS_ONLY = {
    "afr": "refitted on held-out images; those the first head finds hard count more",
    "selective": "refitted on held-out images about which two heads disagree",
    "xrm": "groups by the mistakes of two heads on each other's half, then as group-dro",
    "ula": "a label's log-odds by the proxy are added to the logits while training",
    "erase": "what tells clusters of the proxy apart is removed from the features",
}
KINDS = options.KINDS | HEADS_ONLY
# What a kind works with besides weights, a number an image: codes of groups, or log-odds.
NEEDS = {"group-dro": "groups", "retrain": "groups", "erase": "groups", "ula": "offset"}
JUDGED = ("surprise", "cid", "cid-power")  # methods that verdicts are about, if they were run


@dataclass(frozen=True)
class HeadOptions(Options):
    """How linear heads are trained; ``train.through`` and ``train.robust`` of params.yaml."""

    # A weight multiplies the image's loss, or its chance in a sample of the training set with
    # replacement, of the same size. Stands beside the section, so it is no key of the section.
    through: str = setting("loss", one_of("loss", "sampler"), beside=True)
    alpha: float = setting(0.2, SHARE, "cvar-dro")  # share of worst images, whose mean counts
    tilt: float = setting(3.0, POSITIVE, "kl-dro")  # t of log(mean(exp(t loss))) / t
    group_tilt: float = setting(10.0, POSITIVE, "group-dro")  # of group means; large: the worst
    jtt_l2: float = setting(10.0, POSITIVE, "jtt")  # penalty of the first head
    jtt_upweight: float = setting(2.0, POSITIVE, "jtt")  # weight of the images it gets wrong
    lff_q: float = setting(0.7, SHARE, "lff")  # exponent of the generalised cross-entropy
    lff_l2: float = setting(0.1, POSITIVE, "lff")  # penalty of the biased head
    lff_rounds: int = setting(4, at_least(1), "lff")  # times relative difficulty is taken anew
    draws: int = setting(10, at_least(1), "retrain")  # balanced subsets, averaged over
    afr_gamma: float = setting(4.0, at_least(0, "a number"), "afr")  # weight exp(-gamma p(label))
    afr_l2: float = setting(1.0, POSITIVE, "afr")  # of the difference to the first head
    selective_stop_l2: float = setting(10.0, POSITIVE, "selective")  # of the head "stopped early"
    selective_share: float = setting(0.5, SHARE, "selective")  # of the rarer class's held-out ones
    selective_l2: float = setting(1.0, POSITIVE, "selective")  # of the change of the first head
    xrm_rounds: int = setting(5, at_least(1), "xrm")  # times labels are flipped
    xrm_tilt: float = setting(3.0, POSITIVE, "xrm")  # of the four groups found, as group_tilt
    ula_strength: float = setting(1.0, POSITIVE, "ula")  # how often the log-odds are added


def of_kind(options: Options, kind: str) -> dict:
    """The options that a kind of training depends on, by name: its own, and those of all kinds."""
    own = [one.name for one in fields(options) if one.metadata["kind"] in (None, kind)]
    return {name: getattr(options, name) for name in own}
