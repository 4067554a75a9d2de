"""What is compared: results with labels, the law they follow, and what cannot be compared."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from evaluation_data import changed, make_comparison

from ase_bayesmlip.evaluation import (
    Comparison,
    committee_results,
    energy_errors,
    evaluate_committee,
    force_errors,
)


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def test_law_follows_from_what_the_results_hold():
    comparison = make_comparison(3)
    n = len(comparison.frames[0].atoms)
    spread = changed(comparison, forces_cov_aleatoric=None, energy_var_aleatoric=None)

    def laws(c):
        return energy_errors(c).law, force_errors(c).law

    assert [law.name for law in laws(comparison)] == ["gaussian", "gaussian"]
    # Known to be no spread of members: the covariance counts as known.
    assert [law.name for law in laws(spread)] == ["gaussian", "gaussian"]
    few = dataclasses.replace(spread, n_members=5)
    assert [(law.name, law.n_members) for law in laws(few)] == [("hotelling", 5)] * 2
    three = dataclasses.replace(spread, n_members=3)
    assert [law.name for law in laws(three)] == ["hotelling", "spherical"]
    one = dataclasses.replace(spread, n_members=1)
    assert laws(one) == (None, None)
    assert "1 member(s) have no spread" in force_errors(one).why_no_law
    drawn = dataclasses.replace(spread, n_draws=8)
    assert [(law.name, law.n_draws) for law in laws(drawn)] == [("gaussian", 0), ("hotelling", 8)]
    assert laws(dataclasses.replace(spread, n_draws=2))[1].name == "spherical"
    # With a noise part the number of members does not matter.
    assert laws(dataclasses.replace(comparison, n_members=3))[1].name == "gaussian"
    evidential = changed(comparison, forces_dof=lambda r: np.arange(n) + 5.0)
    assert laws(evidential)[1].name == "student_t"
    np.testing.assert_array_equal(laws(evidential)[1].dof, np.tile(np.arange(n) + 5.0, 3))


def test_committee_results_are_sample_moments(generator):
    energies, forces = generator.standard_normal(5), generator.standard_normal((5, 4, 3))
    results = committee_results(energies, forces)
    assert results["energy"] == pytest.approx(energies.mean())
    assert results["energy_var"] == pytest.approx(energies.var(ddof=1))
    for atom in range(4):
        np.testing.assert_allclose(results["forces_cov"][atom], np.cov(forces[:, atom].T))
    assert set(committee_results(energies[:1], forces[:1])) == {"energy", "forces"}
    with pytest.raises(ValueError, match="shape"):
        committee_results(energies[:4], forces)


def test_any_calculators_can_be_a_committee():
    atoms = Atoms("Ar3", [[0, 0, 0], [3.9, 0, 0], [0, 4.1, 0.2]])
    calculators = [LennardJones(sigma=3.4, epsilon=epsilon, rc=10) for epsilon in (0.9, 1.0, 1.2)]
    (results,) = evaluate_committee(calculators, [atoms])
    atoms.calc = LennardJones(sigma=3.4, epsilon=1.0, rc=10)
    # Energies are proportional to epsilon.
    mean = (0.9 + 1.0 + 1.2) / 3
    assert results["energy"] == pytest.approx(mean * atoms.get_potential_energy())
    variance = np.var([0.9, 1.0, 1.2], ddof=1)
    assert results["energy_var"] == pytest.approx(variance * atoms.get_potential_energy() ** 2)
    outer = np.einsum("na,nb->nab", atoms.get_forces(), atoms.get_forces())
    np.testing.assert_allclose(results["forces_cov"], variance * outer, atol=1e-12)
    with pytest.raises(ValueError, match="one calculator or more"):
        evaluate_committee([], [atoms])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": lambda r: np.nan}, "made-up#0: the predicted energy"),
        ({"forces": None}, "made-up#0: the predicted forces"),
        ({"forces": lambda r: r["forces"][:2]}, "shape"),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        changed(make_comparison(2), **change)
    with pytest.raises(ValueError, match="2 frames have 1 results"):
        Comparison(make_comparison(2).frames, make_comparison(1).results)
