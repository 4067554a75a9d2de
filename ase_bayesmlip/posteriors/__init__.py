"""Posteriors over the weights of a potential: one module per method.

Each module has `Config`, `State`, `fit()` and `draw()`, in that order. The dictionary below is the
whole plugin system: a new method is a new file and a new line here.
"""

from ase_bayesmlip.posteriors import ensemble, evidential, ivon, laplace, point, swag

POSTERIORS = {
    "ensemble": ensemble,
    "evidential": evidential,
    "ivon": ivon,
    "laplace": laplace,
    "point": point,
    "swag": swag,
}
