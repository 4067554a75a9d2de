"""A new run in the place of an earlier one: nothing is lost, whenever it ends."""

import pytest

from ase_bayesmlip.md.run_folder import (
    LOG,
    RECALCULATED,
    TRAJECTORY,
    refuse_earlier_run,
    replaced_run,
)


@pytest.fixture
def out(tmp_path):
    """A folder with an earlier run, and something else of the user's."""
    for name in (TRAJECTORY, LOG, RECALCULATED, "notes.txt"):
        (tmp_path / name).write_text(f"old {name}")
    return tmp_path


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


OLD = {name: f"old {name}" for name in (TRAJECTORY, LOG, RECALCULATED, "notes.txt")}


def write_rows(out):
    (out / LOG).write_text("step\n0\n")
    (out / TRAJECTORY).write_text("new")


def test_an_earlier_run_is_refused(out, tmp_path):
    with pytest.raises(FileExistsError, match="choose another folder or overwrite it"):
        refuse_earlier_run(out, overwrite=False)
    refuse_earlier_run(out, overwrite=True)
    refuse_earlier_run(tmp_path / "empty", overwrite=False)


def test_it_goes_when_the_new_one_has_come_to_its_end(out):
    with replaced_run(out) as replacement:
        assert contents(out) == {"notes.txt": "old notes.txt"}
        assert contents(out / "earlier_run_1").keys() == {TRAJECTORY, LOG, RECALCULATED}
        write_rows(out)
        replacement.finished = True
    assert contents(out) == {"notes.txt": "old notes.txt", LOG: "step\n0\n", TRAJECTORY: "new"}
    assert not list(out.glob("earlier_run_*"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
@pytest.mark.parametrize("header", [False, True])
def test_it_is_put_back_when_the_new_one_has_no_rows(out, error, header):
    try:
        with replaced_run(out):
            if header:
                (out / LOG).write_text("step\n")
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert contents(out) == OLD
    assert not list(out.glob("earlier_run_*"))


def run_and_fail(out, error):
    with replaced_run(out):
        write_rows(out)
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_both_are_kept_when_the_new_one_ends_early(out, error):
    with (
        pytest.warns(UserWarning, match="the earlier one is kept in .*earlier_run_1"),
        pytest.raises(type(error)),
    ):
        run_and_fail(out, error)
    assert contents(out / "earlier_run_1").items() <= OLD.items()
    assert len(contents(out / "earlier_run_1")) == 3
    assert contents(out)[TRAJECTORY] == "new"
    with replaced_run(out) as again:
        assert (out / "earlier_run_2").is_dir()
        write_rows(out)
        again.finished = True
    assert len(contents(out / "earlier_run_1")) == 3


def test_the_first_run_of_a_folder(tmp_path):
    with replaced_run(tmp_path):
        write_rows(tmp_path)
    assert contents(tmp_path).keys() == {LOG, TRAJECTORY}
