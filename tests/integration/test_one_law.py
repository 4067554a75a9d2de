"""`calibrate` and `evaluate` judge the same file by the same law: for every kind of error bar."""

import dataclasses
import math

import numpy as np
import pytest
from ase import Atoms

from ase_bayesmlip.calibration import calibrate, force_radii, observe, scaled_results
from ase_bayesmlip.calibration.scaling import components, fit_one_factor
from ase_bayesmlip.evaluation import Bootstrap, Comparison, EvaluationFrame, evaluate
from ase_bayesmlip.metrics import Origin
from ase_bayesmlip.structures.labelled import LabelledFrame

pytestmark = pytest.mark.slow

ATOMS = Atoms("CHHO")
ELEMENTS = [1, 6, 8]
N_ATOMS, N_FRAMES = len(ATOMS), 400
# By how much the labels are farther off than the model says.
WIDTH = 2.0


def sample(generator, count, root):
    """Gaussian draws, (count, n, d), with the covariance root rootᵀ, (n, d, d)."""
    n, d, _ = root.shape
    return np.einsum("nab,snb->sna", root, generator.standard_normal((count, n, d)))


def moments(drawn, ddof):
    """Mean, and covariance (n, d, d) over S - 1 or, of draws about zero, over D."""
    mean = drawn.mean(axis=0) if ddof else np.zeros(drawn.shape[1:])
    deviation = drawn - mean
    return mean, np.einsum("sna,snb->nab", deviation, deviation) / (len(drawn) - ddof)


def roots(generator, n, d, isotropic):
    size = generator.lognormal(sigma=0.2, size=(n, 1, 1))
    if isotropic:
        return size * np.eye(d)
    return size * (generator.standard_normal((n, d, d)) + 2.0 * np.tri(d))


def quantity(generator, kind, n, d):
    """Parts of the covariance and the error of the label, and degrees of freedom if there are."""
    root = roots(generator, n, d, kind == "three")
    if kind in ("noise", "evidential"):
        noise = roots(generator, n, d, False)
        parts = [r @ r.swapaxes(1, 2) for r in (0.5 * root, noise)]
        error = sample(generator, 1, np.linalg.cholesky(parts[0] + parts[1]))[0]
        if kind == "noise" or d == 1:
            return parts, error, None
        dof = generator.uniform(3.0, 12.0, n)
        return parts, np.sqrt((dof - 2) / generator.chisquare(dof))[:, None] * error, dof
    count = {"members": 6, "three": 3, "draws": 5}[kind]
    ddof = 0 if kind == "draws" else 1
    if kind == "draws" and d == 1:  # known in closed form
        return [root @ root.swapaxes(1, 2), None], sample(generator, 1, root)[0], None
    drawn = sample(generator, count + 1, root)
    mean, covariance = moments(drawn[1:], ddof)
    return [covariance, None], drawn[0] - mean, None


ORIGINS = {
    "noise": Origin(n_members=6),
    "evidential": Origin(),
    "members": Origin(n_members=6),
    "three": Origin(n_members=3),
    "draws": Origin(n_draws=5),
}
LAWS = {
    "noise": ("gaussian", "gaussian"),
    "evidential": ("student_t", "gaussian"),
    "members": ("hotelling", "hotelling"),
    "three": ("spherical", "hotelling"),
    "draws": ("hotelling", "gaussian"),
}


def make(kind, seed):
    """Results and labelled frames that follow the law of their kind, but for the width."""
    generator = np.random.default_rng(seed)
    results, frames = [], []
    for number in range(N_FRAMES):
        forces, force_error, dof = quantity(generator, kind, N_ATOMS, 3)
        energy, energy_error, _ = quantity(generator, kind, 1, 1)
        result = {"energy": 5.0, "forces": np.ones((N_ATOMS, 3))}
        for name, parts in (("forces_cov", forces), ("energy_var", energy)):
            for part, values in zip(("epistemic", "aleatoric"), parts, strict=True):
                if values is not None:
                    value = values if name == "forces_cov" else float(values[0, 0, 0])
                    result[f"{name}_{part}"] = value
        if dof is not None:
            result["forces_dof"] = dof
        atoms = ATOMS.copy()
        atoms.positions = 10.0 * generator.random((N_ATOMS, 3))
        label = result["energy"] + WIDTH * float(energy_error[0, 0])
        labels = result["forces"] + WIDTH * force_error
        results.append(with_totals(result))
        frames.append(LabelledFrame(atoms, label, labels, None, f"{kind}#{number}"))
    return results, frames


def with_totals(result):
    parts = ("epistemic", "aleatoric")
    for name in ("forces_cov", "energy_var"):
        known = [result[f"{name}_{p}"] for p in parts if f"{name}_{p}" in result]
        result[name] = sum(known[1:], start=known[0])
    return result


def numbers_of(results, frames, origin):
    comparison = Comparison(frames_of(frames), results, **dataclasses.asdict(origin))
    return evaluate(comparison, bootstrap=Bootstrap(40)).to_json()


def frames_of(frames):
    return [EvaluationFrame(f.atoms, f.energy, f.forces, source=f.source) for f in frames]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Numbers that nothing here looks at take less time."""
    for name in ("N_REDRAWS", "N_ENERGY_SCORE_SAMPLES"):
        monkeypatch.setattr(f"ase_bayesmlip.evaluation.estimates.{name}", 2)
    monkeypatch.setattr("ase_bayesmlip.evaluation.intervals.N_RANK_RESAMPLES", 40)


@pytest.fixture(scope="module")
def calibrated():
    """Function: kind -> results and frames, the calibration and its origin; made once."""
    cache = {}

    def get(kind):
        if kind not in cache:
            results, frames = make(kind, 1)
            observed = observe(results, frames, ORIGINS[kind])
            cache[kind] = (results, frames, calibrate(observed, ELEMENTS, "global"))
        return cache[kind]

    return get


@pytest.mark.parametrize("kind", ORIGINS)
def test_the_record_and_the_evaluation_agree(kind, calibrated):
    """The same file on the same frames: coverage, likelihood and calibration error."""
    results, frames, found = calibrated(kind)
    content = numbers_of(results, frames, ORIGINS[kind])
    assert (content["law_forces"], content["law_energy"]) == LAWS[kind]
    for quantity_, name in zip(("forces", "energy"), LAWS[kind], strict=True):
        assert found.laws[quantity_]["name"] == name
        before = found.numbers["before"][quantity_]
        for key in ("calibration_error", "coverage_90"):
            expected = content[f"{key}_{quantity_}"]
            assert before[key] == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert before["nll"] == pytest.approx(content[f"{quantity_}_nll"], rel=1e-12)


@pytest.mark.parametrize("kind", ORIGINS)
def test_a_calibrated_file_is_right_by_the_evaluation(kind, calibrated):
    """On new frames: 90 % regions hold 90 %, the error bar is the error, the factor is one."""
    _, _, found = calibrated(kind)
    results, frames = make(kind, 2)
    origin = Origin(**found.record["origin"])
    scaled = [
        with_totals(scaled_results(result, list(ATOMS.symbols), found.factors))
        for result in results
    ]
    content = numbers_of(scaled, frames, origin)
    again = observe(scaled, frames, origin)
    for name, n in (("forces", N_FRAMES * N_ATOMS), ("energy", N_FRAMES)):
        # Both sets scatter, the one that was fitted and the one that is looked at.
        error = math.sqrt(2 * 0.09 / n)
        assert abs(content[f"coverage_90_{name}"] - 0.9) < 4 * error
        refit = fit_one_factor(components(getattr(again, name)))
        errors = refit.log_errors[0], found.log_errors[name][0]
        assert abs(math.log(refit.epistemic)) < 4 * math.hypot(*errors)
        truth = math.log(WIDTH**2)
        factor = found.factors.energy_epistemic
        factor = found.factors.forces_epistemic["H"] if name == "forces" else factor
        assert abs(math.log(factor) - truth) < 4 * errors[1]
    # Mean squares exist for these laws; those of energies scatter with the tails.
    ratio = content["energy_rmse_meV_per_atom"] / content["energy_sigma_meV_per_atom"]
    assert abs(math.log(ratio)) < 0.2
    ratio = content["forces_rmse_meV_per_A"] / content["forces_sigma_meV_per_A"]
    assert abs(math.log(ratio)) < 0.1


class Card:
    def __init__(self, record):
        self.recalibrations = [record]


@pytest.mark.parametrize("kind", ORIGINS)
def test_regions_of_the_law_hold_what_the_record_says(kind, calibrated):
    """`force_radii` of the kind "law", by its old name too."""
    results, frames, found = calibrated(kind)
    card = Card(found.record)
    inside = []
    for result, frame in zip(results, frames, strict=True):
        scaled = scaled_results(result, list(ATOMS.symbols), found.factors)
        parts = [scaled[k] for k in scaled if k.startswith("forces_cov")]
        error = frame.forces - scaled["forces"]
        law = observe([scaled], [frame], Origin(**found.record["origin"])).forces.law
        distance = law.distances(error, sum(parts))
        radius = force_radii(card, ATOMS.numbers, 0.9, "law", result.get("forces_dof"))
        inside.append(distance <= radius)
    held_out = found.numbers["after"]["forces"]["coverage_90"]
    assert abs(np.mean(inside) - held_out) < 0.01
    dof = results[0].get("forces_dof")
    one, other = (force_radii(card, ATOMS.numbers, 0.9, k, dof) for k in ("law", "gaussian"))
    np.testing.assert_array_equal(one, other)


def test_the_law_of_an_evidential_file_needs_its_degrees_of_freedom(calibrated):
    card = Card(calibrated("evidential")[2].record)
    with pytest.raises(ValueError, match=r'dof=calc.results\["forces_dof"\]'):
        force_radii(card, ATOMS.numbers, 0.9, "law")
    with pytest.raises(ValueError, match="2 degrees of freedom for 4 atoms"):
        force_radii(card, ATOMS.numbers, 0.9, "law", [3.0, 4.0])
