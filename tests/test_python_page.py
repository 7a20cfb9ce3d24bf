"""docs/python.md and docs/quickstart.ipynb run as they stand, and the door loads nothing early."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "python_page"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "turbo" / "pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "turbo-whole" / "model_index.json").is_file()


@pytest.mark.slow
def test_the_notebook_runs_and_carries_no_output(tmp_path, monkeypatch):
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", source)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    pictures = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= 3


@pytest.mark.parametrize(
    ("command", "most"), [(["-c", "import fewstep"], 40), (["-m", "fewstep", "--help"], 230)]
)
def test_little_is_imported_before_it_is_needed(command, most):
    """Modules are counted, beside those of bare Python, and not seconds: machines are busy."""

    def imports(*arguments: str) -> int:
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        line = [sys.executable, "-X", "importtime", *arguments]
        run = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
        return run.stderr.count("import time:")

    assert imports(*command) - imports("-c", "pass") <= most


def test_the_door_names_what_there_is():
    import fewstep

    assert set(fewstep.__all__) <= set(dir(fewstep))
    assert all(getattr(fewstep, name) is not None for name in fewstep.__all__)
    with pytest.raises(AttributeError):
        fewstep.lod  # noqa: B018
