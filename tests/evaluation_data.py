"""Made-up predictions whose errors follow a known law, for tests of evaluations."""

import numpy as np
from ase import Atoms

from ase_bayesmlip.evaluation import Bootstrap, Comparison, EvaluationFrame, evaluate


def covariances(n, generator, scale=0.05):
    """Positive definite matrices of different size and direction, (n, 3, 3), (eV/Å)²."""
    factors = generator.standard_normal((n, 3, 3)) + 1.5 * np.eye(3)
    size = scale * np.exp(0.5 * generator.standard_normal(n))
    return size[:, None, None] ** 2 * factors @ factors.swapaxes(1, 2)


def gaussian_errors(covariance, generator):
    factor = np.linalg.cholesky(covariance)
    normal = generator.standard_normal((len(covariance), 3))
    return np.einsum("nab,nb->na", factor, normal)


def make_comparison(n_frames=40, seed=0, width=1.0, symbols="C2H3O", kinds=("cold", "hot")):
    """Frames with Gaussian errors; the stated deviations are `width` times the true ones.

    The true covariance is half epistemic and half aleatoric.
    """
    generator = np.random.default_rng(seed)
    frames, results = [], []
    for number in range(n_frames):
        atoms = Atoms(symbols)
        atoms.positions = 2.0 * np.arange(3 * len(atoms)).reshape(-1, 3) % 7.3
        atoms.positions += 0.1 * generator.standard_normal((len(atoms), 3))
        covariance = covariances(len(atoms), generator)
        deviation = 0.02 * np.exp(0.3 * generator.standard_normal())
        forces = generator.standard_normal((len(atoms), 3))
        energy = -100.0 + generator.standard_normal()
        stated = width**2 * covariance
        results.append(
            {
                "energy": energy,
                "forces": forces,
                "energy_var": (width * deviation) ** 2,
                "energy_var_epistemic": 0.5 * (width * deviation) ** 2,
                "energy_var_aleatoric": 0.5 * (width * deviation) ** 2,
                "forces_cov": stated,
                "forces_cov_epistemic": 0.5 * stated,
                "forces_cov_aleatoric": 0.5 * stated,
            }
        )
        frames.append(
            EvaluationFrame(
                atoms,
                float(energy + deviation * generator.standard_normal()),
                forces + gaussian_errors(covariance, generator),
                config_type=kinds[number % len(kinds)],
                source=f"made-up#{number}",
            )
        )
    return Comparison(frames, results)


def quick(**changes):
    return Bootstrap(**{"n_resamples": 60, **changes})


def changed(comparison, **values):
    """The same predictions with some results replaced, or removed where the value is None."""
    results = []
    for result in comparison.results:
        new = {**result, **{k: v(result) for k, v in values.items() if v is not None}}
        results.append({k: v for k, v in new.items() if values.get(k, 0) is not None})
    return Comparison(comparison.frames, results)


def small_evaluation():
    """Known and foreign frames by two models, with names and a note that need escaping."""
    return evaluate(
        make_comparison(12),
        make_comparison(9, 1, width=0.4),
        make_comparison(12, width=2.0),
        make_comparison(9, 1, width=2.0),
        names={"model": "<b>model</b>.pt", "test": "cold", "ood": "hot"},
        notes=["a note with <tags> & more"],
        bootstrap=Bootstrap(60),
    )
