"""Functions for the cache to keep."""


def double(x, seed):
    return 2 * x + seed


def triple(x):
    return 3 * x
