"""Leverage against a plain numpy one, and what it must do where there is little to go by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ase_bayesmlip.nn.leverage import RIDGE, fit_leverage


def features(n, p=6, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, p)) @ generator.normal(size=(p, p)) + 5.0


def one_hot(elements, n_species=2):
    return torch.nn.functional.one_hot(torch.tensor(elements), n_species).double()


def plain(train, elements, ridge, x, element):
    """x (XᵀX/n + λ)⁻¹ x / n with the atoms of one element."""
    of_element = train[elements == element]
    centre, n = of_element.mean(axis=0), len(of_element)
    centred = of_element - centre
    inverse = np.linalg.inv(centred.T @ centred / n + ridge * np.eye(train.shape[1]))
    return (x - centre) @ inverse @ (x - centre) / n


def test_the_leverage_is_that_of_numpy():
    train, elements = features(50), np.arange(50) % 2
    leverage = fit_leverage(torch.tensor(train), one_hot(elements))
    centred = train - np.array([train[elements == e].mean(axis=0) for e in elements])
    ridge = RIDGE * np.mean(centred**2)
    trial, of_trial = features(9, seed=1), np.arange(9) % 2
    found = leverage(torch.tensor(trial), one_hot(of_trial))
    expected = [plain(train, elements, ridge, *item) for item in zip(trial, of_trial, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_at_home_it_averages_to_the_number_of_features_over_that_of_atoms():
    train, elements = features(80), np.arange(80) % 2
    leverage = fit_leverage(torch.tensor(train), one_hot(elements))
    assert float(leverage(torch.tensor(train), one_hot(elements)).mean()) == pytest.approx(
        6 / 40, rel=1e-2
    )


def test_it_does_not_depend_on_the_basis_of_the_features_nor_on_their_unit():
    train, elements = features(60), one_hot(np.arange(60) % 2)
    turn = torch.linalg.qr(torch.tensor(features(6, seed=2)))[0]
    x = torch.tensor(train)
    expected = fit_leverage(x, elements)(x, elements)
    torch.testing.assert_close(
        fit_leverage(3.0 * x @ turn, elements)(3.0 * x @ turn, elements), expected
    )


@pytest.mark.parametrize("n", [0, 1, 3])
def test_of_few_atoms_new_directions_count_strongly_but_finitely(n):
    elements = np.r_[np.zeros(40, dtype=int), np.ones(n, dtype=int)]
    train = torch.tensor(features(40 + n))
    leverage = fit_leverage(train, one_hot(elements))
    known = leverage(train, one_hot(elements))
    foreign = leverage(torch.tensor(features(1, seed=3)), one_hot([1]))
    assert torch.isfinite(foreign).all()
    assert float(foreign) > 100.0 * float(known.max())


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_features_that_never_vary_give_numbers(value):
    same = torch.full((4, 3), value, dtype=torch.float64)
    elements = one_hot([0, 1, 0, 1])
    leverage = fit_leverage(same, elements)
    assert float(leverage(same, elements).abs().max()) == 0.0
    assert torch.isfinite(leverage(same + 1.0, elements)).all()
    assert float(leverage(same + 1.0, elements).min()) > 0.0
