"""Names, checksums and the record of compiled parts, without torch and without a compiler."""

import json
import stat
import zipfile

import pytest

from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.serving.compiler import _remember
from ase_bayesmlip.serving.parts import check_names, checksums, made_here, record_path, remember
from ase_bayesmlip.serving.runtime import load_model

A, B = "a" * 64, "b" * 64


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_entry(served, tmp_path, name, content=b"harmless"):
    """A served file with one more entry; `name` is a text or a `ZipInfo`."""
    path = tmp_path / "model.pt"
    path.write_bytes(served("small").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content)
    return path


def root_of(served):
    with zipfile.ZipFile(served("small")) as archive:
        return archive.namelist()[0].split("/")[0]


def test_checksums_are_sha256():
    # FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksums({"x": b"abc"}) == {"x": digest}


@pytest.mark.parametrize(
    "name",
    [
        "ROOT/extra/notes.txt",
        "ROOT/extra/compiled/cpu-float32/other.so",
        "ROOT/extra/compiled/tpu-float32/program.pt2",
        "ROOT/extra/compiled/cpu-float16/program.pt2",
        "ROOT/extra/compiled/cpu-float32/deeper/program.pt2",
        "ROOT/extra/compiled/cpu-float32/../program.pt2",
        "ROOT/../program.pt2",
        "ROOT/extra//compiled/cpu-float32/program.pt2",
        "ROOT\\extra\\program.pt2",
        "/program.pt2",
        "other/extra/compiled/cpu-float32/program.pt2",
        "program.pt2",
    ],
)
def test_a_file_with_an_unknown_name_in_it_is_refused(served, tmp_path, capsys, name):
    name = name.replace("ROOT", root_of(served))
    path = with_entry(served, tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    for backend in ("auto", "aoti", "torchscript"):
        with pytest.raises(ValueError, match=r"model\.pt holds .*do not use") as caught:
            load_model(path, backend=backend)
        assert name.split("/")[-1].split("\\")[-1] in str(caught.value)
    assert main(["inspect", str(path)]) == 2
    assert "model.pt holds" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_place_of_a_part_is_refused(served, tmp_path):
    info = zipfile.ZipInfo(f"{root_of(served)}/extra/compiled/cpu-float32/program.pt2")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ValueError, match=r"program\.pt2', which no served file does"):
        check_names(with_entry(served, tmp_path, info, b"elsewhere"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["compiled/cpu-float32/program.pt2", "model_card.json"])
def test_a_name_twice_is_refused(served, tmp_path, name):
    entry = f"{root_of(served)}/extra/{name}"
    path = with_entry(served, tmp_path, entry)
    if name != "model_card.json":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(entry, b"again")
    with pytest.raises(ValueError, match=r"2 times|two model cards"):
        load_model(path)


def test_a_part_that_no_record_speaks_of_is_not_used(served, tmp_path):
    entry = f"{root_of(served)}/extra/compiled/cpu-float64/program.pt2"
    path = with_entry(served, tmp_path, entry)
    assert not read_card(path).compiled
    assert load_model(path).backend == "torchscript"


def test_what_was_compiled_here_is_remembered(cache):
    assert not made_here([A])
    remember([A])
    remember([B])
    assert made_here([A, B])
    assert not made_here([A, "c" * 64])
    assert not made_here([])
    assert json.loads((cache / "ase_bayesmlip/compiled.json").read_text()) == {"sha256": [A, B]}


def test_the_record_is_in_the_home_without_another_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):  # which the XDG specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert record_path() == tmp_path / ".cache/ase_bayesmlip/compiled.json"


def test_a_home_that_cannot_be_written_is_no_accident(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not made_here([A])
    with pytest.warns(UserWarning, match=r'cannot be noted down.*backend="aoti"'):
        _remember({"sha256": {"program.pt2": A}}, tmp_path / "model.pt")
