"""The method in plain NumPy, to be read: conditional inverse density (CID) and label surprise.

:mod:`cid.weights` computes the same in blocks and on any device; the tests compare the two. By default
it also chooses what is open: CID's width tau from the distances to the nearest neighbours, and, for
label surprise, the number of neighbours k and the sharpness of the posterior by the likelihood of the
class labels, after removing the direction along which the label shifts the embedding
(:mod:`cid.posterior`). Shapes: embeddings z (n, d), labels y (n,) of 0..C-1, weights (n,) of mean 1.
"""

import numpy as np


def unit(z):
    """Embeddings of length 1: only their direction counts."""
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def normalised(w, y):
    """Weights with the same total in every class, and of mean 1."""
    total = np.bincount(y, weights=w)
    return w / total[y] * len(y) / len(total)


def density(z, y, tau):
    """p(z_i | y_i): the mean of exp((cos - 1) / tau) over the images of its class."""
    kernel = np.exp((unit(z) @ unit(z).T - 1) / tau)
    same_class = y[:, None] == y
    return (kernel * same_class).sum(axis=1) / same_class.sum(axis=1)


def cid(z, y, tau):
    """CID weights: 1 / p(z | y)."""
    return normalised(1 / density(z, y, tau), y)


def posterior(z, y, k):
    """p(y_i | z_i) among the k nearest other images, by Laplace's rule."""
    cosine = unit(z) @ unit(z).T
    np.fill_diagonal(cosine, -np.inf)  # an image is no neighbour of its own
    nearest = np.argsort(-cosine, axis=1)[:, :k]
    agree = (y[nearest] == y[:, None]).sum(axis=1)
    prior = np.bincount(y) / len(y)
    return (agree + len(prior) * prior[y]) / (k + len(prior))


def surprise(z, y, k):
    """Label surprise weights: 1 / p(y | z), the second factor alone."""
    return normalised(1 / posterior(z, y, k), y)
