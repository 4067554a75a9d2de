"""Every script of the tutorials runs as a user runs it, in an empty folder, and has its page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples" / "tutorials").glob("*.py"))
SCRIPTS = [path for path in SCRIPTS if path.stem != "foreign_files"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_script(script, tmp_path):
    if script.stem == "own_data":
        pytest.importorskip("dpdata")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "nan" not in ended.stdout
    page = (ROOT / "docs" / "tutorials" / f"{script.stem.replace('_', '-')}.md").read_text()
    assert f"examples/tutorials/{script.name}" in page
    for picture in tmp_path.glob("*.png"):
        assert f"({picture.name})" in page
        assert (ROOT / "docs" / "tutorials" / picture.name).stat().st_size < 60_000
