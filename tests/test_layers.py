"""The layers: imports point down only, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featx

PACKAGE = Path(featx.__file__).parent

# From the bottom up. A module (or a package, as one) may import only from the shelves below its
# own; inside a package its files may import each other without a circle.
SHELVES: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {"errors", "counting", "spelling", "home"},
            {"datasets", "units"},
            {"image_sources"},
            {
                "metrics",
                "splits",
                "folds",
                "devices",
                "image_hashes",
                "image_headers",
                "image_lists",
                "image_folders",
                "image_modes",
                "weight_files",
                "interrupts",
                "own_network",
                "memory",
                "resampling",
                "likeness",
                "room",
                "versions",
                "temperature",
            },
            {
                "duplicates",
                "comparison",
                "images",
                "decoding",
                "transforms",
                "cache",
                "weights",
                "tracing",
                "pooling",
                "keys",
                "device_resize",
                "batch_resize",
                "classics",
            },
            {
                "axes",
                "cut_costs",
                "identity",
                "architectures",
                "engines",
                "drawing",
                "loading",
                "augmentation",
                "whole_files",
                "shared_memory",
            },
            {"cut_graph", "worker", "interchange", "usable", "foreign", "frozen"},
            {"unpublished", "timm_backbones", "torchvision_backbones"},
            {"cut", "backbones", "featureset", "workspace", "child", "limits"},
            {
                "rates",
                "forward",
                "specs",
                "plans",
                "heads",
                "grouping",
                "failures",
                "isolation",
                "leaks",
            },
            {
                "quick_start",
                "crossfit",
                "passes",
                "head_names",
                "protocol",
                "testable",
                "standings",
                "cross_validated",
            },
            {"pipeline", "target", "calibration"},
            {"filling", "recorded"},
            {
                "extraction",
                "fitting",
                "evaluation",
                "cross_validation",
                "few_shot",
                "prediction",
                "extractor",
                "stopwatch",
                "auditing",
            },
            {
                "repairing",
                "benching",
                "comparing",
                "finalising",
                "exporting",
                "importing",
                "whole_network",
                "converting",
            },
            {"report"},
            {"cli"},
            {"__main__", "__init__"},
        ),
    )
)
SHELF = {name: i for i, shelf in enumerate(SHELVES) for name in shelf}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    return relative.parts[0]


def imports_of(path: Path) -> set[str]:
    """Parts of featx that a file imports anywhere, also inside functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "featx":
                found |= {alias.name for alias in node.names if alias.name != "__version__"}
            elif node.module and node.module.startswith("featx."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("featx.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    assert part in SHELF, f"{part} is on no shelf: put it on one"
    if part == "__init__":
        return  # it names what is public, and imports it when it is first used
    wrong = {other for other in imports_of(path) - {part} if SHELF[other] >= SHELF[part]}
    assert not wrong, f"{part} imports {wrong}, which is not below it"


def test_files_of_a_package_do_not_import_in_a_circle() -> None:
    for package in {path.parent for path in FILES if path.parent != PACKAGE}:
        name = f"featx.{package.relative_to(PACKAGE).as_posix().replace('/', '.')}"
        names = {path.stem for path in package.glob("*.py")} - {"__init__"}
        below: dict[str, set[str]] = {}
        for path in package.glob("*.py"):
            if path.stem == "__init__":
                continue
            tree = ast.walk(ast.parse(path.read_text("utf-8")))
            modules = {n.module for n in tree if isinstance(n, ast.ImportFrom) and n.module}
            below[path.stem] = {m for m in names if f"{name}.{m}" in modules}
            assert name not in modules, f"{path} imports its own package"
        while below:
            free = {module for module, needs in below.items() if not needs & below.keys()}
            assert free, f"a circle among {sorted(below)} of {name}"
            below = {module: needs for module, needs in below.items() if module not in free}


def test_only_the_cache_imports_h5py() -> None:
    users = {
        part_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import) and any(alias.name == "h5py" for alias in node.names)
    }
    assert users == {"cache"}


def test_every_public_name_is_there_and_documented() -> None:
    for name in featx.__all__:
        if name != "__version__":
            assert getattr(featx, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featx.nothing


def heavy_imports(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name for name in ("torch", "sklearn", "torchvision", "pandas", "matplotlib", "scipy")
            if name in run.stdout.split()}  # fmt: skip


def test_importing_featx_imports_nothing_heavy() -> None:
    assert heavy_imports("import featx") == set()
    assert heavy_imports("import scipy") == {"scipy"}  # the check itself can fail
    assert heavy_imports("import featx; featx.load") == set()  # a cache opens without a network


def test_help_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "from typer.testing import CliRunner\nfrom featx.cli import app\n"
        "names = [command.name for command in app.registered_commands]\nassert len(names) > 9\n"
        "for arguments in [[], *([name] for name in names)]:\n"
        "    result = CliRunner().invoke(app, [*arguments, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    assert 'Usage' in result.output"
    )
    assert heavy_imports(code) == set()
