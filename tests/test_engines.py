"""Engines: they agree with PyTorch or are not used, repeat to the bit, and are prepared once."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featx.devices import Device
from featx.engines import choice, openvino, store
from featx.engines.base import CannotRunError, Work
from featx.engines.choice import (
    ENGINES,
    MAX_DIFFERENCE,
    Running,
    check_agreement,
    check_engine,
    default_engine,
    make_engine,
    openvino_batch_size,
)
from featx.engines.eager import EagerEngine, arithmetic
from featx.engines.store import Prepared
from featx.errors import InputError, MissingExtraError

CPU = Device("cpu", "as asked")
SIZE = 24
needs_openvino = pytest.mark.skipif(
    not openvino.is_installed(), reason="OpenVINO has no wheel for this platform"
)


class Tiny(nn.Module):
    """A residual, an in-place ReLU and a BatchNorm that has seen data."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.first(images)))
        return (x + self.second(x)).mean(dim=(2, 3))


def tiny() -> Tiny:
    torch.manual_seed(0)
    network = Tiny()
    network(torch.randn(8, 3, SIZE, SIZE))
    return network.eval().requires_grad_(False)


def normalise(batch: torch.Tensor) -> torch.Tensor:
    return batch.float() / 255 - 0.5


def work(front: nn.Module | None = None, **changes: Any) -> Work:
    parts: dict[str, Any] = {
        "front": front or tiny(),
        "normalise": normalise,
        "device": CPU,
        "precision": "fp32",
        "input_size": (SIZE, SIZE),
        "identity": {"network": "tiny"},
        **changes,
    }
    return Work(**parts)


def pictures(n: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def run(engine: Any, images: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [engine(batch) for batch in np.split(images, len(images) // engine.batch_size)]
    )


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATX_ENGINE_FOLDER", str(tmp_path / "engines"))


# --- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "installed", "expected"),
    [
        ("cpu", "fp32", True, "openvino"),
        ("cpu", "fp32", False, "torch-eager"),
        ("cpu", "bf16", True, "torch-eager"),
        ("cuda:0", "fp32", True, "torch-eager"),
        ("mps", "fp32", True, "torch-eager"),
    ],
)
def test_the_engine_follows_from_device_and_precision_alone(
    device: str, precision: Any, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda: installed)
    assert default_engine(Device(device, ""), precision) == expected


def test_an_engine_that_cannot_be_had_is_refused_with_what_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("auto", "torch-eager", "torch-compiled"):
        check_engine(name, CPU)
    with pytest.raises(InputError, match=r"auto, torch-eager or .* got 'tensorrt'"):
        check_engine("tensorrt", CPU)
    with pytest.raises(InputError, match="openvino runs on the CPU, not on cuda:0"):
        check_engine("openvino", Device("cuda:0", ""))
    with pytest.raises(InputError, match="torch-cudagraph runs on CUDA, not on cpu"):
        check_engine("torch-cudagraph", CPU)
    monkeypatch.setattr(choice, "is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match="pip install openvino"):
        check_engine("openvino", CPU)


def test_networks_with_large_linear_layers_take_several_images_at_a_time() -> None:
    assert openvino_batch_size(work()) == 1
    with torch.device("meta"):
        large = nn.Sequential(nn.Flatten(), nn.Linear(25_088, 4096))  # VGG's first
    assert openvino_batch_size(work(large)) == 8


# --- agreement ------------------------------------------------------------------------------------


def compiler_is_there() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:  # noqa: BLE001 (it raises an error of its own)
        return False


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "torch-cudagraph"])
def test_every_engine_agrees_with_the_network(name: str, batch_size: int) -> None:
    if name == "openvino" and not openvino.is_installed():
        pytest.skip("OpenVINO has no wheel for this platform")
    if name == "torch-compiled" and (batch_size > 1 or not compiler_is_there()):
        pytest.skip("compiling takes long, or there is no compiler")
    asked = Running(name, batch_size, threads=2, insists=True)
    engine = make_engine(work(), asked, pictures)
    assert (engine.name, engine.batch_size, engine.feature_shape) == (name, batch_size, (8,))
    images = pictures(5 if batch_size != 2 else 6)
    with torch.no_grad():
        expected = tiny()(normalise(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    found = run(engine, images)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


class Off:
    """An engine whose features are too large by `factor`."""

    name, batch_size, concurrency, feature_shape = "off", 2, 1, (8,)

    def __init__(self, factor: float, rows: int = 99) -> None:
        self.factor, self.rows = factor, rows
        self.exact = EagerEngine(work(), batch_size=2)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        features = self.exact(batch)
        features[: self.rows] *= self.factor
        return features


def test_an_engine_that_differs_in_a_single_row_is_found_out() -> None:
    facts = check_agreement(Off(1 + MAX_DIFFERENCE / 2), work(), pictures(5))
    assert facts["checked_on"] == 5
    assert MAX_DIFFERENCE / 4 < facts["largest_difference"] <= MAX_DIFFERENCE
    with pytest.raises(CannotRunError, match=r"differ from PyTorch's by 2\.0e-04"):
        check_agreement(Off(1 + 2 * MAX_DIFFERENCE, rows=1), work(), pictures(5))
    with pytest.raises(CannotRunError, match="not all finite"):
        check_agreement(Off(np.nan, rows=1), work(), pictures(5))


def test_an_engine_of_less_precision_is_judged_by_the_angle() -> None:
    facts = check_agreement(Off(1.01), work(precision="bf16"), pictures(4))
    assert facts["least_cosine"] == pytest.approx(1)
    with pytest.raises(CannotRunError, match=r"0\.333 as long as PyTorch's"):
        check_agreement(Off(3.0, rows=1), work(precision="bf16"), pictures(4))
    with pytest.raises(CannotRunError, match=r"cosine of -1\.0000"):
        check_agreement(Off(-1.0, rows=1), work(precision="bf16"), pictures(4))


def test_a_network_that_overflows_is_compared_where_it_does_not() -> None:
    class Overflowing(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + torch.where(images.amax() > 0.49, torch.inf, 0.0)

    bright = pictures(2)
    dark = bright // 2
    torch.manual_seed(0)
    network = Overflowing().eval()
    engine = EagerEngine(work(network), batch_size=1)
    assert not np.isfinite(engine(bright[:1])).any()
    facts = check_agreement(engine, work(network), np.concatenate([bright, dark]))
    assert facts["largest_difference"] == 0


@needs_openvino
def test_auto_falls_back_with_a_warning_where_features_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = openvino.OpenVinoEngine.__call__

    def wrong(self: Any, batch: np.ndarray) -> np.ndarray:
        return call(self, batch) + np.float32(0.01)

    monkeypatch.setattr(openvino.OpenVinoEngine, "__call__", wrong)
    with pytest.warns(RuntimeWarning, match="openvino is not used: its features differ") as told:
        engine = make_engine(work(), Running(threads=1), pictures)
    assert engine.name == "torch-eager"
    assert len(told) == 1
    with pytest.raises(InputError, match="engine openvino cannot be used here: its features"):
        make_engine(work(), Running("openvino", threads=1, insists=True), pictures)


@needs_openvino
def test_what_cannot_be_converted_is_tried_once_and_then_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Undecided(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if images.sum() > 0 else images.mean(dim=(2, 3))

    tried: list[int] = []
    prepare = openvino.prepare

    def counted(*arguments: Any) -> Prepared:
        tried.append(1)
        return prepare(*arguments)

    monkeypatch.setattr(choice, "prepare", counted)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="openvino is not used: it cannot be converted"):
            assert (
                make_engine(work(Undecided()), Running(threads=1), pictures).name == "torch-eager"
            )
    assert tried == [1]


# --- bits -----------------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize("batch_size", [1, 4])
def test_neither_threads_nor_neighbours_nor_other_calls_change_a_bit(batch_size: int) -> None:
    images = pictures(32)
    expected = None
    for threads in (1, 2, 3):
        engine = make_engine(work(), Running("openvino", batch_size, threads, True), pictures)
        assert engine.concurrency == threads
        order = np.random.default_rng(threads).permutation(len(images))
        batches = np.split(images[order], len(images) // batch_size)
        with ThreadPoolExecutor(threads) as pool:
            found = np.empty((len(images), 8), np.float32)
            found[order] = np.concatenate(list(pool.map(engine, batches)))
        expected = found if expected is None else expected
        assert found.tobytes() == expected.tobytes()


@needs_openvino
def test_calls_that_overlap_do_not_write_into_each_others_features() -> None:
    engine = make_engine(work(), Running("openvino", 1, 2, True), pictures)
    first, second = pictures(2)[:1], pictures(2)[1:]
    expected = engine(first).copy(), engine(second).copy()
    kept = engine(first)
    engine(second)
    assert kept.tobytes() == expected[0].tobytes()
    wrong: list[int] = []

    def repeat(batch: np.ndarray, features: np.ndarray) -> None:
        wrong.extend(i for i in range(200) if engine(batch).tobytes() != features.tobytes())

    threads = [
        threading.Thread(target=repeat, args=pair)
        for pair in zip((first, second), expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- CUDA's settings, as far as they can be looked at without it ----------------------------------


def settings() -> list[Any]:
    backends: Any = torch.backends
    tf32 = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)  # as the compiler asks
    return [*tf32, backends.cudnn.deterministic, backends.cudnn.benchmark]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True)])
def test_precision_is_set_for_all_who_overlap_and_put_back_by_the_last(
    precision: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device, before = torch.device("cpu"), settings()
    with ExitStack() as first:
        first.enter_context(arithmetic(device, precision))
        second = ExitStack()
        second.enter_context(arithmetic(device, precision))
        first.close()  # the first to come goes first
        assert settings() == [tf32, tf32, True, False]
        second.close()
    assert settings() == before


# --- memory ---------------------------------------------------------------------------------------


class Greedy(Tiny):
    """Runs out of memory with more than three images at once, as CUDA does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_the_batch_size_is_halved_until_it_fits_unless_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "_ACCELERATORS", ("cpu",))
    engine = make_engine(work(Greedy().eval()), Running("torch-eager", threads=1), pictures)
    assert engine.batch_size == 2  # 16, 8, 4, 2
    with pytest.raises(torch.OutOfMemoryError):
        make_engine(work(Greedy().eval()), Running("torch-eager", 4, 1), pictures)


def test_batches_are_no_larger_than_there_are_images() -> None:
    assert (
        make_engine(work(), Running("torch-eager", threads=1, n_images=3), pictures).batch_size == 3
    )
    asked = Running("torch-eager", batch_size=5, threads=1, n_images=3)
    assert make_engine(work(), asked, pictures).batch_size == 5


# --- prepared networks on the disk ----------------------------------------------------------------


@needs_openvino
def test_a_second_start_prepares_and_checks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_engine(work(), Running(threads=1), pictures)

    def never(*arguments: Any) -> Any:
        raise AssertionError("done again")

    monkeypatch.setattr(choice, "prepare", never)
    again = make_engine(work(), Running(threads=1), never)
    assert first(pictures(1)).tobytes() == again(pictures(1)).tobytes()
    for other in (work(identity={"network": "other"}), work(input_size=(32, 32))):
        with pytest.raises(AssertionError, match="done again"):
            make_engine(other, Running(threads=1), pictures)


KEY = {"engine": "any", "batch_size": 1}


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    assert store.load_prepared(KEY) is None
    prepared = Prepared(b"graph", b"\0\1weights", {"checked_on": 3})
    store.save_prepared(KEY, prepared)
    assert store.load_prepared(KEY) == prepared
    assert store.load_prepared({**KEY, "batch_size": 2}) is None
    assert len(list((tmp_path / "engines").iterdir())) == 1


def test_a_prepared_network_with_any_byte_changed_is_as_good_as_none(tmp_path: Path) -> None:
    store.save_prepared(KEY, Prepared(b"graph", b"weights", {}))
    (path,) = (tmp_path / "engines").iterdir()
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert store.load_prepared(KEY) is None, i
    for data in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(data)
        assert store.load_prepared(KEY) is None
    path.write_bytes(whole)
    assert store.load_prepared(KEY) is not None


def test_a_file_under_the_name_of_another_key_is_not_used(tmp_path: Path) -> None:
    store.save_prepared(KEY, Prepared(b"a", b"", {}))
    (path,) = (tmp_path / "engines").iterdir()
    store.save_prepared({"other": 1}, Prepared(b"b", b"", {}))
    (other,) = set((tmp_path / "engines").iterdir()) - {path}
    other.replace(path)
    assert store.load_prepared(KEY) is None


def test_the_longest_unused_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MAX_TOTAL_BYTES", 4_000)
    for i in range(3):
        store.save_prepared({"i": i}, Prepared(bytes(1_000), b"", {}))
        stamp = 1_000_000_000 + i
        os.utime(store._path({"i": i}), (stamp, stamp))
    assert store.load_prepared({"i": 0}) is not None  # used now
    store.save_prepared({"i": 3}, Prepared(bytes(1_000), b"", {}))
    assert [store.load_prepared({"i": i}) is not None for i in range(4)] == [
        True,
        False,
        True,
        True,
    ]


@needs_openvino
def test_where_nothing_can_be_kept_the_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEATX_ENGINE_FOLDER", str(tmp_path / "file" / "engines"))
    with pytest.warns(RuntimeWarning, match="FEATX_ENGINE_FOLDER names another folder"):
        assert make_engine(work(), Running(threads=1), pictures).name == "openvino"


# --- privacy --------------------------------------------------------------------------------------


IMPORTING = """
import sys
from featx.engines.openvino import import_openvino
{}.Core()
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
print('openvino.tools.ovc' in sys.modules, 'openvino_telemetry' in sys.modules)
"""


@needs_openvino
@pytest.mark.parametrize(
    ("importing", "has_telemetry"),
    [
        ("import_openvino()", "False"),
        # else there is nothing to hide from
        pytest.param("__import__('openvino')", "True", marks=pytest.mark.slow),
    ],
    ids=["as featx does", "plainly"],
)
def test_openvino_is_imported_without_its_telemetry(importing: str, has_telemetry: str) -> None:
    code = IMPORTING.format(importing)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", has_telemetry]


@needs_openvino
def test_preparing_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_engine(work(), Running(threads=1), pictures)
    assert capfd.readouterr() == ("", "")


# --- what goes wrong, and passes ------------------------------------------------------------------


@needs_openvino
def test_what_may_pass_is_not_remembered_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", no_memory)
        with pytest.warns(RuntimeWarning, match="openvino is not used: .* can't allocate memory"):
            assert make_engine(work(), Running(threads=1), pictures).name == "torch-eager"
    assert make_engine(work(), Running(threads=1), pictures).name == "openvino"


@needs_openvino
@pytest.mark.parametrize("error", [ImportError("libtbb.so.12"), OSError("libtbb.so.12")])
def test_an_openvino_that_cannot_be_imported_is_told_of(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr(openvino, "import_openvino", fail)
    with pytest.warns(RuntimeWarning, match=r"cannot be imported: libtbb\.so\.12"):
        assert make_engine(work(), Running(threads=1), pictures).name == "torch-eager"
    with pytest.raises(InputError, match="engine openvino cannot be used here: OpenVINO cannot"):
        make_engine(work(), Running("openvino", threads=1, insists=True), pictures)


def test_an_engine_of_an_earlier_run_that_is_gone_leaves_its_batch_size_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    replayed = Running("openvino", 1, 1, suits="openvino")
    with pytest.warns(RuntimeWarning, match="openvino is not used: OpenVINO is not installed"):
        assert make_engine(work(), replayed, pictures).batch_size == 16
    given = Running("openvino", 1, 1)
    with pytest.warns(RuntimeWarning, match="is not installed"):
        assert make_engine(work(), given, pictures).batch_size == 1


@needs_openvino
def test_no_room_for_temporary_files_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("Can't open bin file.")

    monkeypatch.setattr(openvino.import_openvino(), "save_model", full)
    with pytest.warns(RuntimeWarning, match="it cannot be prepared: Can't open bin file"):
        assert make_engine(work(), Running(threads=1), pictures).name == "torch-eager"


@needs_openvino
def test_what_was_compared_on_noise_alone_is_compared_again_on_photographs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    check = choice.check_agreement

    def counted(engine: Any, work_: Work, shown: np.ndarray) -> dict[str, Any]:
        compared.append(len(shown))
        return check(engine, work_, shown)

    monkeypatch.setattr(choice, "check_agreement", counted)
    photographs = Running(threads=1, samples=[Path("a.jpg")])
    for running, n in ((Running(threads=1), 1), (Running(threads=1), 1), (photographs, 3)):
        make_engine(work(), running, lambda n=n: pictures(n))  # type: ignore[misc]
    make_engine(work(), photographs, pictures)
    assert compared == [1, 3]


def test_where_two_batches_do_not_fit_one_at_a_time_is_tried_before_smaller_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "_ACCELERATORS", ("cpu",))
    made: list[tuple[int, int]] = []

    def try_out(engine: Any, work_: Work) -> None:
        made.append((engine.batch_size, engine.concurrency))
        if engine.batch_size * engine.concurrency > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    class TwoAtATime(EagerEngine):
        def __init__(self, work_: Work, *, batch_size: int) -> None:
            super().__init__(work_, batch_size=batch_size)
            self.concurrency = 2

    monkeypatch.setattr(choice, "_try_out", try_out)
    monkeypatch.setattr("featx.engines.eager.EagerEngine", TwoAtATime)
    engine = make_engine(work(), Running("torch-eager", 16, 1, suits="torch-eager"), pictures)
    assert (engine.batch_size, engine.concurrency) == (16, 1)
    assert made == [(16, 2), (16, 1)]


def test_a_check_that_compares_nothing_is_not_passed() -> None:
    class Nothing(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * torch.nan

    engine = EagerEngine(work(Nothing().eval()), batch_size=1)
    with pytest.raises(CannotRunError, match="PyTorch's features are not finite"):
        check_agreement(engine, work(Nothing().eval()), pictures(2))
    flat = Off(1.0)
    flat.feature_shape = (2, 4)  # type: ignore[assignment]
    with pytest.raises(CannotRunError, match=r"its features are \(2, 4\), PyTorch's \(8,\)"):
        check_agreement(flat, work(), pictures(2))


def test_features_of_zeros_agree_with_zeros() -> None:
    class Dark(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * 0

    front = Dark().eval()
    for precision in ("fp32", "bf16"):
        asked = work(front, precision=precision)
        facts = check_agreement(EagerEngine(work(front), batch_size=1), asked, pictures(2))
        assert facts["checked_on"] == 2
