"""The notebook: it runs as it is committed, without a warning, and its figures agree."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import featx

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install '.[test]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install '.[test]'")
pytest.importorskip("ipykernel", reason="needs ipykernel: pip install '.[test]'")

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "cached_features.ipynb"
KERNEL = "featx-test"

# What the notebook's variables hold at its end, as one line of JSON. The pipeline is fitted again
# to a tight tolerance first: scikit-learn's default leaves probabilities a few hundredths apart.
ASK = """
import json
from sklearn.base import clone
tight = clone(model).set_params(logisticregression__tol=1e-8, logisticregression__max_iter=5000)
tight.fit(train.X.astype(float), train.y)
print(json.dumps({
    "scikit-learn": accuracy, "featx": accuracy_featx,
    "search": accuracy_search, "grouped": accuracy_grouped,
    "held out": len(held_out), "baseline": report.baseline.accuracy.value,
    "groups": len(set(groups)), "train": len(train),
    "furthest probabilities": float(
        abs(tight.predict_proba(held_out.X) - fit.file.head.predict_proba(held_out.X)).max()
    ),
    "h5py agrees": bool(np.array_equal(X_h5, X) and np.array_equal(y_h5, y)),
}))
"""


def _committed() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nbformat warns of cells without ids instead of failing
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        nbformat.validate(notebook)
    return notebook


def _kernel_of_this_interpreter(folder: Path) -> None:
    """A kernelspec for the interpreter of the tests: what is installed may name another."""
    spec = folder / "kernels" / KERNEL
    spec.mkdir(parents=True)
    # Without frozen_modules=off the debugger says on standard error that it may miss breakpoints.
    argv = [sys.executable, "-X", "frozen_modules=off", "-m", "ipykernel_launcher"]
    path = [str(Path(featx.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    definition = {
        "argv": [*argv, "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
        "env": {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    }
    (spec / "kernel.json").write_text(json.dumps(definition), encoding="utf-8")


def _run(notebook: Any, folder: Path) -> None:
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name=KERNEL, resources={"metadata": {"path": str(folder)}}
    )
    # Only Jupyter runs in this process, so only its warnings are put aside here. The notebook's
    # own come out of the kernel on standard error, where a test below looks for them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(client.async_execute())
        gc.collect()  # sockets that Jupyter leaves to the collector


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run in a temporary folder, with `ASK` as its last cell."""
    folder = tmp_path_factory.mktemp("notebook")
    _kernel_of_this_interpreter(folder / "jupyter")
    notebook = _committed()
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TORCH_HOME"):
            (folder / name).mkdir()
            patch.setenv(name, str(folder / name))
        for name in ("TMPDIR", "TEMP", "TMP"):  # where the notebook puts its pictures
            patch.setenv(name, str(folder))
        patch.delenv("MPLBACKEND", raising=False)  # plots go into the notebook, as for a user
        patch.delenv("FORCE_COLOR", raising=False)
        _run(notebook, folder)
    return notebook


@pytest.fixture
def found(executed: Any) -> dict[str, Any]:
    return json.loads(executed.cells[-1].outputs[0].text)


def _cell(notebook: Any, name: str) -> Any:
    return next(cell for cell in notebook.cells if cell.id == name)


def _printed(notebook: Any, name: str) -> str:
    outputs = _cell(notebook, name).outputs
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def test_the_committed_notebook_holds_no_outputs() -> None:
    code = [cell for cell in _committed().cells if cell.cell_type == "code"]
    assert len(code) > 10
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_every_cell_of_the_committed_notebook_has_an_id_of_its_own() -> None:
    raw = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in raw["cells"]]
    assert len(set(ids)) == len(ids)


def test_the_committed_notebook_names_no_machine() -> None:
    raw = json.loads(NOTEBOOK.read_text("utf-8"))
    assert raw["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert {json.dumps(cell["metadata"]) for cell in raw["cells"]} == {"{}"}


def test_every_cell_runs(executed: Any) -> None:
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    failed = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert failed == []


def test_no_cell_warns(executed: Any) -> None:
    said = [
        output.text
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr" and "Warning" in output.text
    ]
    assert said == []


def test_scikit_learn_and_featx_agree_and_are_good(found: dict[str, Any]) -> None:
    assert found["scikit-learn"] == found["featx"]
    assert found["furthest probabilities"] < 1e-3  # the same fit, not only the same count
    assert 0.8 < found["featx"] <= 1
    assert found["baseline"] < 0.3
    assert found["held out"] >= 20


def test_a_chosen_C_and_grouped_folds_do_well_too(found: dict[str, Any]) -> None:
    assert found["search"] > 0.8
    assert found["grouped"] > 0.8
    assert 4 * found["groups"] == found["train"]


def test_the_printed_accuracies_are_those_of_the_variables(
    executed: Any, found: dict[str, Any]
) -> None:
    assert _printed(executed, "fit").split()[-1] == f"{found['scikit-learn']:.3f}"
    assert f"featx            {found['featx']:.3f} (95 %" in _printed(executed, "compare")
    assert _printed(executed, "search").split()[-1] == f"{found['search']:.3f}"
    assert f": {found['grouped']:.3f}, folds" in _printed(executed, "folds")


def test_h5py_alone_reads_what_featx_reads(executed: Any, found: dict[str, Any]) -> None:
    assert found["h5py agrees"]
    assert "the same X and y: True" in _printed(executed, "same")
    assert "Grue_cendrée" in _printed(executed, "same")


def test_the_features_the_table_and_the_plot_are_shown(executed: Any) -> None:
    kinds = {
        name: {kind for output in _cell(executed, name).outputs for kind in output.get("data", ())}
        for name in ("features", "frame", "plot")
    }
    assert "text/html" in kinds["features"]
    assert "text/html" in kinds["frame"]
    assert "image/png" in kinds["plot"]
    html = _cell(executed, "features").outputs[0].data["text/html"]
    assert "FeatureSet(120 images x 512 float32, 6 classes" in html
