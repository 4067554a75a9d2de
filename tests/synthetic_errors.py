"""Errors of models whose covariances are wrong by known factors."""

import dataclasses
import math

import numpy as np
from ase import Atoms

from ase_bayesmlip.calibration import calibrate, observe
from ase_bayesmlip.metrics import Errors, PredictiveLaw
from ase_bayesmlip.structures.labelled import LabelledFrame

ELEMENTS = [1, 6, 8]


def random_covariances(generator, n, size=1.0):
    """Anisotropic, of different sizes."""
    a = generator.standard_normal((n, 3, 5))
    scale = size * generator.lognormal(sigma=1.0, size=(n, 1, 1))
    return scale * np.einsum("nik,njk->nij", a, a) / 5


def draw(generator, covariance):
    z = generator.standard_normal((len(covariance), 3))
    return np.einsum("nij,nj->ni", np.linalg.cholesky(covariance), z)


def force_errors(generator, n, a, b):
    epistemic, aleatoric = (random_covariances(generator, n) for _ in range(2))
    error = draw(generator, a * epistemic + b * aleatoric)
    return Errors(error, epistemic, aleatoric, np.arange(n), PredictiveLaw())


def synthetic(n_frames, seed=0, a=1.0, b=1.0, tails=None, symbols="CHHO", parts="ea", copies=1):
    """Results and labelled frames of a model whose covariances are wrong by known factors.

    `a` and `b` may be dictionaries by symbol for the forces, with one under ``energy``. With
    `tails` the errors of a frame share a random factor of that degree of freedom (Student-t), so
    that they are neither Gaussian nor independent.
    """
    generator = np.random.default_rng(seed)
    results, frames = [], []
    atoms = Atoms(symbols)
    n = len(atoms)
    for index in range(n_frames):
        cov = {"e": random_covariances(generator, n, 0.5), "a": random_covariances(generator, n)}
        var = {"e": generator.lognormal(), "a": generator.lognormal()}
        factors = {"e": a, "a": b}

        def of(part, key, factors=factors):
            given = factors[part]
            return given[key] if isinstance(given, dict) else given

        true_cov = sum(
            np.array([of(p, s) for s in atoms.symbols])[:, None, None] * cov[p] for p in parts
        )
        true_var = sum(of(p, "energy") * var[p] for p in parts)
        heavy = 1.0 if tails is None else math.sqrt(tails / generator.chisquare(tails))
        result = {"energy": 3.0, "forces": np.ones((n, 3)), "energy_var": 0.0, "forces_cov": 0.0}
        for part, name in (("e", "epistemic"), ("a", "aleatoric")):
            if part in parts:
                result[f"forces_cov_{name}"], result[f"energy_var_{name}"] = cov[part], var[part]
                result["forces_cov"] = result["forces_cov"] + cov[part]
                result["energy_var"] += var[part]
        error = heavy * draw(generator, true_cov)
        energy = 3.0 + heavy * math.sqrt(true_var) * generator.standard_normal()
        results.append(result)
        frames.append(LabelledFrame(atoms, energy, 1.0 + error, None, f"synthetic#{index}"))
    return results, frames


def fitted(method="global", n_frames=400, elements=ELEMENTS, **options):
    return calibrate(observe(*synthetic(n_frames, **options)), elements, method)


class Card:
    """The part of a card that regions read."""

    def __init__(self, calibration):
        self.recalibrations = [calibration.record]


def student_errors(generator, n, a, b):
    """Student-t errors with the covariance a Σ_epistemic + b Σ_aleatoric, of 3 to 30 degrees."""
    errors = force_errors(generator, n, a, b)
    dof = generator.uniform(3.0, 30.0, n)
    heavy = np.sqrt((dof - 2.0) / generator.chisquare(dof))
    law = PredictiveLaw(dof=dof)
    return dataclasses.replace(errors, error=heavy[:, None] * errors.error, law=law)
