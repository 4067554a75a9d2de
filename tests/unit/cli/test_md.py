"""Options of ``bayesmlip md`` as they are read."""

import argparse

import pytest

from ase_bayesmlip.cli.main import _parser
from ase_bayesmlip.md.integrators import INTEGRATORS
from ase_bayesmlip.scores import SCORES


def parse(*options):
    return _parser().parse_args(["md", "model.pt", "start.xyz", "--out", "run", *options])


def test_temperatures_are_one_or_a_ramp(capsys):
    assert parse().temperature_K == (300.0, None)
    assert parse("--temperature-K", "77.5").temperature_K == (77.5, None)
    assert parse("--temperature-K", "300:600").temperature_K == (300.0, 600.0)
    for wrong in ("hot", "300:", "300:600:900"):
        with pytest.raises(SystemExit):
            parse("--temperature-K", wrong)
        said = f"--temperature-K: '{wrong}' is no temperature such as 300 and no ramp such as"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("low", ["-1e6", "-1.5E-3", "-inf", "-3", "-.5", "-2.e+4"])
def test_negative_numbers_are_values(capsys, low):
    assert parse("--energy-limit", low, "1e6").energy_limit == [float(low), 1e6]
    assert parse("--pressure-GPa", low).pressure_GPa == float(low)
    with pytest.raises(SystemExit):
        parse("-1e6x")
    assert "unrecognized arguments: -1e6x" in capsys.readouterr().err


def commands():
    action = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@pytest.mark.parametrize("name", commands())
def test_help_shows_every_default_and_choice(name):
    parser = commands()[name]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, f"{name} {action.dest} has no help"
        if action.choices:
            assert f"{{{','.join(map(str, action.choices))}}}" in text
        shown = parser._get_formatter()._expand_help(action)
        if action.option_strings and action.nargs != 0 and not action.required:
            assert "(default: " in shown, f"{name} {action.dest}: {shown}"
            if action.default not in (None, argparse.SUPPRESS):
                assert f"(default: {action.default})" in shown


def test_help_names_integrators_and_scores():
    text = commands()["md"].format_help()
    for name in (*INTEGRATORS, *SCORES):
        assert name in text
