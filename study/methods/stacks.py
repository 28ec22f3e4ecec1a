"""Training sets of more than two classes, for the methods that know no more of a stack than its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from study.methods.base import STACK, TrainingStack

if TYPE_CHECKING:  # torch takes seconds to import
    from cid.softmax import SoftmaxHeads


class SoftmaxStack(TrainingStack):
    """A stack whose labels are classes from 0, of more than two; it has no design."""

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1

    def fit(self, weights, l2: float | None = None, **more) -> SoftmaxHeads:
        """Fit heads under weights of shape (heads, n): :func:`cid.softmax.fit_softmax_heads`."""
        from cid.softmax import fit_softmax_heads

        prepared = self.once("prepared", dict)
        return fit_softmax_heads(
            self.features, self.labels, weights, l2 or self.l2, prepared=prepared, **more
        )

    def fit_each(self, stack: list[np.ndarray]) -> list[SoftmaxHeads]:
        """Fit heads under the weights (seeds, n) of each of several methods, some methods together.

        As there, a method's heads are the same to the byte whatever stands beside it.
        """
        if self.through == "sampler":
            return [self.fit(weights) for weights in stack]
        size = len(self.seeds)
        fitted = []
        for first in range(0, len(stack), STACK):
            part = stack[first : first + STACK]
            heads = self.fit(np.concatenate(part), room=STACK)
            fitted += [heads.rows(slice(k * size, (k + 1) * size)) for k in range(len(part))]
        return fitted

    def losses(self, heads: SoftmaxHeads) -> np.ndarray:
        """Cross-entropies ``-log p(label)`` of the images, (heads, n)."""
        from cid.softmax import cross_entropies

        return cross_entropies(heads.logits(self.features), self.labels)

    def part(self, weights, share: float) -> np.ndarray:
        """A random ``share`` of each class of every training set, at least one image: bool (seeds, n)."""
        chosen = np.zeros(np.shape(weights), dtype=bool)
        for row, seed in enumerate(self.seeds):
            order = np.random.default_rng([int(seed), 2]).permutation(len(self.labels))
            order = order[weights[row, order] > 0]
            for label in range(self.classes):
                members = order[self.labels[order] == label]
                chosen[row, members[: max(1, round(share * len(members)))]] = True
        return chosen


def wrong(stack: TrainingStack, heads) -> np.ndarray:
    """Whether heads get each image wrong, bool (heads, n)."""
    logits = heads.logits(stack.features)
    if logits.ndim == 3:
        return logits.argmax(axis=2) != stack.labels
    return (logits > 0) != (stack.labels == 1)
