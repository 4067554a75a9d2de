"""Names of labels in a configuration: those of before are read, those that cannot be meant not."""

import pytest

from ase_bayesmlip.config import ConfigError, KeysConfig, from_dict, load_config, to_dict
from ase_bayesmlip.config.keys import check_keys
from ase_bayesmlip.config.run import Config
from ase_bayesmlip.training.state import run_identity

OLD = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stress": "virial"}, "data.keys.virial: virial"),
        ({"stress": "REF_Virial"}, "data.keys.virial: REF_Virial"),
        ({"stress": "VIRIALS"}, "data.keys.virial: VIRIALS"),
        ({"stress": "s", "virial": "w"}, "names a stress, 's', and a virial, 'w'; give one"),
        ({"energy": " "}, "a name is empty"),
        ({"virial": ""}, "a name is empty"),
        ({"energy": "E", "forces": "E"}, "two labels have one name"),
        ({"virial": "REF_energy"}, "two labels have one name"),
    ],
)
def test_refused(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        check_keys(KeysConfig(**keys))
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{train: a.xyz, keys: {keys}}}")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


@pytest.mark.parametrize("keys", [{}, OLD, {"virial": "W"}, {"stress": "S"}, {"stress": None}])
def test_accepted_and_written_as_it_is_read(keys):
    found = from_dict(KeysConfig, keys)
    check_keys(found)
    assert from_dict(KeysConfig, to_dict(found)) == found
    assert found.stress_or_default == (keys.get("stress") or "REF_stress")


def test_a_run_of_before_goes_on():
    """Checkpoints of before hold the default name of the stress, and no virial."""
    config = from_dict(Config, {"data": {"train": "a.xyz"}})
    assert run_identity(config)["data"]["keys"] == OLD
    other = from_dict(Config, {"data": {"train": "a.xyz", "keys": {"virial": "W"}}})
    assert run_identity(other)["data"]["keys"] == {**OLD, "virial": "W"}
