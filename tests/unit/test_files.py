"""Files written whole or not at all."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from ase import Atoms

from ase_bayesmlip.files import append_whole, write_whole
from ase_bayesmlip.md.actions import LogCSV
from ase_bayesmlip.structures.extxyz import FrameFile
from ase_bayesmlip.training.log import append_metrics, truncate_metrics


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_content_permissions_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"one")
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o600)
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    for target in (path, tmp_path / "new.pt"):
        with pytest.raises(OSError, match=rf"No space left on device.*{target.name}"):
            write_whole(target, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/folder/file"):
        write_whole(tmp_path / "no/folder/file", b"")


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path, order = tmp_path / "file", []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append("replace"), replace(self, to))
    )
    write_whole(path, b"x" * 10**6)
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder
    assert path.stat().st_size == 10**6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full():
    with pytest.raises(OSError, match=r"No space left on device.*/dev/full"):
        append_whole(Path("/dev/full"), b"row")


class Half:
    """A file on a disk that takes three more bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(content[:3])
        self.file.flush()
        full_disk()


def add_metrics(path):
    append_metrics(path, {"epoch": 1, "loss": 0.25})


def add_frame(path):
    FrameFile(path).append(Atoms("H", info={"REF_energy": -1.0}))


def add_log_row(path):
    LogCSV(path).on_frame(SimpleNamespace(row={"step": 1, "score": 0.5}))


@pytest.mark.parametrize("add", [add_metrics, add_frame, add_log_row])
def test_what_is_added_is_added_whole_or_not_at_all(add, tmp_path, monkeypatch):
    """Metrics, frames with their labels, and the log of a monitor."""
    path = tmp_path / "metrics.csv"
    add(path)
    before = path.read_bytes()
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Half(real(self, *a, **k)))
    with pytest.raises(OSError, match=r"No space left on device.*metrics\.csv"):
        add(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    add(path)
    assert len(path.read_bytes()) > len(before)


def test_rows_of_a_continued_run_keep_their_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    for row in ({"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.2, "more": 3}, {"epoch": 3}):
        append_metrics(path, row)
    truncate_metrics(path, 2)
    assert path.read_bytes() == b"epoch,loss\r\n1,0.1\r\n2,0.2,3\r\n"
    truncate_metrics(path, 0)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"loss\r\n1\r\n", b"epoch\r\none\r\n", b"loss,epoch\r\n1\r\n", b"\xff\xfe"]
)
def test_a_damaged_table_names_the_file_and_the_repair(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is not a table.*delete it"):
        truncate_metrics(path, 1)
