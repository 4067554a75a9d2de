"""One training at a time in a folder."""

import multiprocessing
import os

import pytest
from spawned import hold
from tiny import tiny_config

from ase_bayesmlip.posteriors import POSTERIORS, RunOptions
from ase_bayesmlip.posteriors.lock import LOCK_FILE, folder_lock


def test_a_second_training_is_told_of_the_first(tmp_path):
    with folder_lock(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(FileExistsError, match=rf"at work in .*\(process {os.getpid()} on "),
                folder_lock(tmp_path),
            ):
                pass
    with folder_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(FileExistsError, match="run is a file; give a folder"):
        POSTERIORS["point"].fit(tiny_config(), tmp_path / "run")


def test_nothing_is_left_of_a_training_that_never_began(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path / "run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_dead_process_left_locks_nothing(tmp_path):
    (tmp_path / LOCK_FILE).write_text("process 1 on another machine\n")
    with folder_lock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / LOCK_FILE).read_text()


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(120)
    with pytest.raises(FileExistsError, match=f"process {process.pid}"), folder_lock(tmp_path):
        pass
    process.kill()
    process.join()
    assert (tmp_path / LOCK_FILE).exists()
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("kind", POSTERIORS)
def test_every_posterior_is_fitted_under_the_lock(tmp_path, kind):
    with folder_lock(tmp_path), pytest.raises(FileExistsError, match="another training"):
        POSTERIORS[kind].fit(tiny_config(), tmp_path, RunOptions(progress=False))
    assert list(tmp_path.iterdir()) == []


def test_the_other_ranks_of_torchrun_take_no_lock(tmp_path, monkeypatch):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, ("1", "1", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with folder_lock(tmp_path), folder_lock(tmp_path):
        assert list(tmp_path.iterdir()) == []
