"""Posteriors over the weights of a potential: one module per method.

Each module has `Config`, `State`, `fit(config, folder, options)`, `load(folder)` and
`draw(state, n, generator)`; `RunOptions` says how a fit goes about it. The dictionary below is the
whole plugin system: a new method is a new file and a new line here.
"""

from ase_bayesmlip.posteriors import ensemble, evidential, ivon, laplace, point, swag
from ase_bayesmlip.posteriors.options import RunOptions

__all__ = ["POSTERIORS", "RunOptions"]

POSTERIORS = {
    "ensemble": ensemble,
    "evidential": evidential,
    "ivon": ivon,
    "laplace": laplace,
    "point": point,
    "swag": swag,
}
