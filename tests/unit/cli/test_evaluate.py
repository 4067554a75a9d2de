"""What ``bayesmlip evaluate`` makes of its arguments; the command itself is tested whole."""

from ase_bayesmlip.cli.evaluate import _foreign


def test_foreign_sets_of_one_name_are_told_apart(tmp_path):
    paths = [str(tmp_path / name) for name in ("a/hot.extxyz@:9", "b/hot.extxyz", "cold.xyz.gz")]
    notes = []
    assert _foreign(paths, "cold", notes) == {
        "hot": paths[0],
        "hot (2)": paths[1],
        "cold (2)": paths[2],
    }
    assert notes == [f"hot (2) is {paths[1]}", f"cold (2) is {paths[2]}"]
