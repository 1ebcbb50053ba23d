"""A decoder that crashes or hangs costs one file, not the run."""

from __future__ import annotations

import _thread
import errno
import hashlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from misbehaving import PLAIN, SIZE, Misbehaving
from PIL import Image
from typer.testing import CliRunner

import featx
import featx.child
import featx.isolation
from featx.cli import app
from featx.errors import FeatxError, ImageError
from featx.extractor import FeatureExtractor
from featx.forward import run
from featx.isolation import IsolatedLoader
from featx.loading import Loader
from featx.passes import MemorySink
from featx.resampling import MAX_WINDOW_BYTES
from featx.shared_memory import SharedMemory
from featx.worker import HEADER, PIXELS, PLACED, READ, READY, REFUSED

LOADER = Misbehaving(PLAIN)
FOR_EVER_S = 1_000.0  # no test waits so long, unless what it tests is broken

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no memfd")
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and named pipes")

File = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Makes a file that tells the decoder what to do."""
    folder = tmp_path / "files"
    folder.mkdir()

    def make(content: str) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.png"
        path.write_bytes(content.encode())
        return path

    return make


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes started for decoding during the test."""
    processes: list[subprocess.Popen[bytes]] = []
    start = featx.child._start

    def counted(descriptor: int | None) -> subprocess.Popen[bytes]:
        processes.append(start(descriptor))
        return processes[-1]

    monkeypatch.setattr(featx.child, "_start", counted)
    return processes


def failure(load: IsolatedLoader, path: Path) -> tuple[int, str]:
    """Status and words of a file that cannot be used; its digest is checked."""
    with pytest.raises(ImageError) as caught:
        load(path)
    read = caught.value.status != 2
    assert caught.value.sha256 == (
        hashlib.sha256(path.read_bytes()).digest() if read else bytes(32)
    )
    return caught.value.status, str(caught.value)


def colour_of(number: int) -> tuple[int, int, int]:
    return number % 251, number // 251, 77


def coloured(folder: Path, number: int) -> Path:
    path = folder / f"{number}.png"
    Image.new("RGB", (SIZE, SIZE), colour_of(number)).save(path)
    return path


class ColourEngine:
    """Features are the colour, so that a row says which picture it came from."""

    name = "colour"
    batch_size = 4
    concurrency = 1
    feature_shape = (3,)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[:, 0, 0].astype(np.float32)


# --- what a decoder can do ------------------------------------------------------------------------


def test_a_picture_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (31, 57, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    with IsolatedLoader(LOADER) as load:
        isolated, here = load(path), LOADER(path)
    assert np.array_equal(isolated.pixels, here.pixels)
    assert isolated.pixels.dtype == np.uint8
    assert isolated.sha256 == here.sha256


def test_a_picture_that_is_left_to_be_resized_is_the_same_as_in_this_process(
    tmp_path: Path,
) -> None:
    loader = replace(LOADER, windows=True)
    sizes = [(20, 30), (SIZE, 12), (30, 12), (5, 7), (32, 32), (33, 33)]
    with IsolatedLoader(loader) as load:
        for i, (h, w) in enumerate(sizes):
            path = tmp_path / f"{i}.png"
            pixels = np.random.default_rng(i).integers(0, 256, (h, w, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            isolated, here = load(path), loader(path)
            assert isolated.window == here.window
            assert (here.window is not None) is ((h, w) in [(20, 30), (5, 7), (32, 32)])
            assert np.array_equal(isolated.pixels, here.pixels)
            assert isolated.sha256 == here.sha256


def test_a_bad_file_is_refused_with_the_same_words_as_in_this_process(file: File) -> None:
    broken = file("no picture at all")
    with IsolatedLoader(LOADER) as load:
        for path in (broken, broken.with_name("none.jpg")):
            with pytest.raises(ImageError) as here:
                LOADER(path)
            with pytest.raises(ImageError) as isolated:
                load(path)
            assert str(isolated.value) == str(here.value)
            assert isolated.value.status == here.value.status
            assert isolated.value.sha256 == here.value.sha256


@posix_only
def test_each_way_to_die_costs_its_file_alone_and_row_i_stays_file_i(
    file: File, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    deadly = {2: "segfault", 5: "abort", 9: "leave"}
    paths = [file(deadly[i]) if i in deadly else coloured(tmp_path, i) for i in range(12)]
    sink = MemorySink(len(paths), (3,))
    with IsolatedLoader(LOADER) as load:
        times = run(enumerate(paths), load, engine=ColourEngine(), sink=sink, workers=2)
    assert sink.failed == {
        2: (5, "crashed the decoder (signal 11, SIGSEGV)"),
        5: (5, "crashed the decoder (signal 6, SIGABRT)"),
        9: (5, "crashed the decoder (exit code 3)"),
    }
    assert (times.done, times.failed) == (9, 3)
    for i, path in enumerate(paths):
        assert sink.sha256[i].tobytes() == hashlib.sha256(path.read_bytes()).digest()
        assert i in deadly or sink.features[i].tolist() == list(colour_of(i))
    assert len(started) >= 2 * len(deadly)  # each was tried once more, in a new process
    assert all(process.returncode is not None for process in started)


def test_a_file_that_crashes_the_first_time_only_is_decoded(file: File, tmp_path: Path) -> None:
    with IsolatedLoader(LOADER) as load:
        picture = load(file(f"once {tmp_path / 'marker'}"))
    assert picture.pixels[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("verb", "has_poll"), [("loop", True), ("freeze", True), ("freeze", False)]
)
def test_a_decoder_that_hangs_is_killed_and_its_file_recorded(
    file: File, verb: str, has_poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featx.child, "_HAS_POLL", has_poll and featx.child._HAS_POLL)
    with IsolatedLoader(LOADER, timeout_s=1) as load:
        assert failure(load, file(verb)) == (5, "decoding took more than 1 s")
        assert load(file("touch " + os.devnull)).pixels.shape == LOADER.shape


@posix_only
def test_a_file_that_cannot_be_read_to_its_end_may_be_tried_again(tmp_path: Path) -> None:
    fifo = tmp_path / "a.jpg"
    os.mkfifo(fifo)
    with IsolatedLoader(LOADER, timeout_s=1) as load:
        assert failure(load, fifo) == (2, "reading took more than 1 s")


def test_a_pause_of_the_whole_machine_is_not_blamed_on_a_file(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """Goes on by an hour whenever it is looked at."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 3_600
            return self.now

    with IsolatedLoader(LOADER, timeout_s=30) as load:
        load(file("touch " + os.devnull))
        monkeypatch.setattr(featx.child, "time", Clock())
        assert load(file("doze 0.8")).pixels.shape == LOADER.shape


def test_a_defect_in_the_decoding_is_not_taken_for_a_bad_file(file: File) -> None:
    with IsolatedLoader(LOADER) as load:
        with pytest.raises(RuntimeError, match=r"(?s)0\.png met an error.*ZeroDivisionError: a de"):
            load(file("defect"))
        assert load(file("touch " + os.devnull)).pixels.shape == LOADER.shape


@pytest.mark.parametrize(
    "claim",
    [
        HEADER.pack(PIXELS, 2**32 - 1),
        HEADER.pack(PIXELS, 3) + b"abc",
        HEADER.pack(READ, 32) + bytes(32),  # which it had said already
        HEADER.pack(77, 0),
        HEADER.pack(REFUSED, 0),
        HEADER.pack(REFUSED, 3) + bytes([1]) + b"ok",  # a status that no failure has
        HEADER.pack(REFUSED, 10**6),
        pickle.dumps(print),
    ],
    ids=["huge", "short", "again", "kind", "empty", "status", "words", "pickle"],
)
def test_what_a_process_claims_is_believed_within_bounds_only(
    tmp_path: Path, claim: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(allocated_for(claim, LOADER, tmp_path, monkeypatch)) <= SIZE * SIZE * 3


@linux_only
@pytest.mark.parametrize(
    "claim",
    [
        HEADER.pack(PLACED, 4) + struct.pack("<I", SIZE * SIZE * 3 + 1),
        HEADER.pack(PLACED, 4) + struct.pack("<I", SIZE * SIZE * 3 - 1),
        HEADER.pack(PLACED, 3) + b"abc",
        HEADER.pack(PLACED, 5) + bytes(5),
        HEADER.pack(PIXELS, SIZE * SIZE * 3),
    ],
    ids=["more", "less", "short", "long", "through the pipe"],
)
def test_what_a_process_claims_to_have_left_in_the_memory_is_looked_at_within_bounds_only(
    tmp_path: Path, claim: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(allocated_by(claim, LOADER, tmp_path, monkeypatch)) <= 32  # a digest


def test_memory_is_not_looked_at_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = HEADER.pack(PLACED, 4) + struct.pack("<I", SIZE * SIZE * 3)
    assert max(allocated_for(claim, LOADER, tmp_path, monkeypatch)) <= 32


@linux_only
def test_the_memory_of_both_stays_as_large_as_it_was() -> None:
    memory = SharedMemory.create(5000)
    assert memory is not None
    assert memory.descriptor is not None
    other = SharedMemory(os.dup(memory.descriptor))
    assert other.place([b"abc", memoryview(b"de")]) == 5
    assert other.descriptor is not None
    for size_bytes in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.truncate(other.descriptor, size_bytes)
    other.close()
    assert memory.copy(6) == b"abcde" + bytes(1)
    memory.close()


@linux_only
@pytest.mark.parametrize("call", ["memfd_create", "posix_fallocate", "none", "no seals"])
def test_pictures_go_through_the_pipe_where_no_memory_can_be_had(
    call: str, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refused(*_: object) -> int:
        raise OSError(errno.EPERM, "not permitted")

    if call == "none":
        monkeypatch.delattr(os, "memfd_create")
    elif call == "no seals":
        monkeypatch.delattr(fcntl, "F_ADD_SEALS")
    else:
        monkeypatch.setattr(os, call, refused)
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    assert SharedMemory.create(100) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open
    with IsolatedLoader(LOADER) as load:
        assert load(file("noise")).pixels[0, 0].tolist() == [1, 2, 3]


@linux_only
def test_the_memory_is_not_where_the_other_process_has_its_pipes() -> None:
    code = (
        "import os; os.close(0); from featx.shared_memory import SharedMemory; "
        "print(SharedMemory.create(10).descriptor)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(result.stdout) > 2


@linux_only
def test_no_descriptor_of_the_memory_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(process: int | str) -> int:
        links = list(Path(f"/proc/{process}/fd").iterdir())
        return sum("memfd:featx" in str(link.readlink()) for link in links if link.is_symlink())

    before, n_open = Path("/proc/self/maps").read_text().count("memfd:featx"), opened("self")
    child = featx.child.Child(LOADER, timeout_s=30)
    child.wait_until_ready()
    assert opened("self") <= n_open + 1  # the mapping's own
    assert opened(child._process.pid) <= 1
    child.end()
    monkeypatch.setattr(featx.child.multiprocessing.spawn, "get_executable", lambda: "")
    with pytest.raises(featx.child.NotStartedError):
        featx.child.Child(LOADER, timeout_s=30)
    assert opened("self") == n_open
    assert Path("/proc/self/maps").read_text().count("memfd:featx") == before


def left_to_resize(h: int, w: int, n_pixels: int) -> bytes:
    """Claims to be of a picture of so many rows and columns."""
    return HEADER.pack(PIXELS, 8 + 3 * n_pixels) + struct.pack("<II", h, w) + bytes(3 * n_pixels)


@pytest.mark.parametrize(
    "claim",
    [
        HEADER.pack(PIXELS, 2**32 - 1),
        HEADER.pack(PIXELS, MAX_WINDOW_BYTES + 9),
        HEADER.pack(PIXELS, 10) + bytes(10),
        left_to_resize(16, 16, 16 * 16 - 1),
        left_to_resize(16, 16, 16 * 17),
        left_to_resize(16, 15, 16 * 16),
        left_to_resize(0, 0, SIZE * SIZE + 1),
        left_to_resize(0, 16, 16),
        left_to_resize(SIZE, SIZE, SIZE * SIZE),  # which needs no resizing
        left_to_resize(600, 600, 100),
        left_to_resize(1, 20_000_000, 100),  # would be too large
        left_to_resize(2**32 - 1, 2**32 - 1, 100),
        left_to_resize(20, 10_000_000, 20 * 22),  # more pixels than are decoded
    ],
    ids=[
        "huge", "too large", "nothing", "short", "long", "other shape", "resized", "no rows",
        "not resized", "shrunk much", "strip", "no such picture", "many pixels",
    ],
)  # fmt: skip
def test_what_a_process_claims_of_a_window_is_believed_within_bounds_only(
    tmp_path: Path, claim: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = replace(LOADER, windows=True)
    assert max(allocated_for(claim, loader, tmp_path, monkeypatch)) <= 8 + MAX_WINDOW_BYTES


def allocated_for(
    claim: bytes, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """How many bytes were made room for in turn, until a process that claims this was left."""
    monkeypatch.setattr(SharedMemory, "create", lambda _: None)
    return allocated_by(claim, loader, tmp_path, monkeypatch)


def allocated_by(
    claim: bytes, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    script = tmp_path / "impostor.py"
    said = HEADER.pack(READ, 32) + b"s" * 32 + claim
    script.write_text(
        f"import os, time\nos.read(0, 2**16)  # the loader\nos.write(1, {READY!r})\n"
        f"os.read(0, 2**16)  # the path\nos.write(1, {said!r})\ntime.sleep({FOR_EVER_S})"
    )
    impostor = subprocess.Popen(
        [sys.executable, "-S", "-E", str(script)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    allocated: list[int] = []

    def noted(size: int) -> bytearray:
        allocated.append(size)
        return bytearray(size)

    monkeypatch.setattr(featx.child, "bytearray", noted, raising=False)
    monkeypatch.setattr(SharedMemory, "copy", lambda _, size: noted(size))
    monkeypatch.setattr(featx.child, "_start", lambda _: impostor)
    child = featx.child.Child(loader, timeout_s=FOR_EVER_S)
    try:
        child.wait_until_ready()
        with pytest.raises(featx.child.DiedError, match="it answered what makes no sense"):
            child.load(tmp_path)
    finally:
        child.end()
    assert child.sha256 == b"s" * 32
    return allocated


def test_what_decoders_print_reaches_neither_the_terminal_nor_the_answers(
    file: File, capfd: pytest.CaptureFixture[str]
) -> None:
    with IsolatedLoader(LOADER) as load:
        assert load(file("noise")).pixels[0, 0].tolist() == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


@posix_only
def test_a_crash_writes_no_core_file(file: File) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        with IsolatedLoader(LOADER) as load:
            load(file("core 0"))  # raises an AssertionError where a crash would leave more bytes
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


# --- which processes there are --------------------------------------------------------------------


def test_a_process_imports_nothing_that_decoding_does_not_need() -> None:
    code = "import sys, featx.worker, featx.loading; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules = set(result.stdout.split())
    assert "featx.decoding" in modules
    assert not modules & {"torch", "torchvision", "h5py", "scipy", "sklearn", "pandas"}


@pytest.mark.skipif(sys.platform != "linux", reason="pipes of other systems keep their size")
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("refused", [False, True])
def test_a_picture_fits_into_the_pipe_or_goes_through_it_in_parts(
    windows: bool, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(SharedMemory, "create", lambda _: None)
    loader = Loader(PLAIN.replace(resize=256, crop=224), windows=windows)
    if refused:
        monkeypatch.setattr(featx.child.fcntl, "F_SETPIPE_SZ", -1)  # OSError: invalid argument
    child = featx.child.Child(loader, timeout_s=30)
    try:
        child.wait_until_ready()
        most = max(loader.body_bytes[1], 224 * 224 * 3)
        fits = fcntl.fcntl(child._stdout, fcntl.F_GETPIPE_SZ) >= HEADER.size + most
        assert fits is not refused
        path = coloured(tmp_path, 7)
        Image.open(path).resize((660, 660)).save(path)  # of which 1 MB is left to be resized
        assert np.array_equal(child.load(path).pixels, loader(path).pixels)
    finally:
        child.end()


def test_no_process_is_started_without_a_file(started: list[subprocess.Popen[bytes]]) -> None:
    with IsolatedLoader(LOADER):
        pass
    assert started == []


def test_one_process_serves_all_calls_until_another_would_have_been_ready(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """Stands still, but for the hour that starting a process takes."""

        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, wait_until_ready = Clock(), featx.child.Child.wait_until_ready

    def take_an_hour(child: featx.child.Child) -> None:
        wait_until_ready(child)
        clock.now += 3_600

    monkeypatch.setattr(featx.child.Child, "wait_until_ready", take_an_hour)
    monkeypatch.setattr(featx.isolation, "time", clock)
    paths = [coloured(tmp_path, i) for i in range(20)]
    with IsolatedLoader(LOADER) as load, ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(load, paths))
    assert [p.pixels[0, 0].tolist() for p in pictures] == [list(colour_of(i)) for i in range(20)]
    assert len(started) == 1


def test_a_slow_file_does_not_keep_the_others_waiting(file: File, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    slow, quick = file(f"after {marker}"), file(f"touch {marker}")
    with IsolatedLoader(LOADER) as load, ThreadPoolExecutor(2) as pool:
        pictures = list(pool.map(load, [slow, quick]))  # the first ends when the second has
    assert len(pictures) == 2


@posix_only
def test_a_process_that_died_idle_is_replaced_and_counts_as_no_attempt(
    file: File, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with IsolatedLoader(LOADER) as load:
        load(coloured(tmp_path, 1))
        started[0].kill()
        started[0].wait()
        assert load(file(f"once {tmp_path / 'marker'}")).pixels[0, 0].tolist() == [1, 2, 3]
    assert len(started) == 3


@posix_only
def test_ctrl_c_is_for_the_process_that_asks(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with IsolatedLoader(LOADER) as load:
        load(coloured(tmp_path, 1))
        assert os.getpgid(started[0].pid) != os.getpgid(0)
        started[0].send_signal(signal.SIGINT)
        load(coloured(tmp_path, 2))
    assert len(started) == 1


@pytest.fixture
def _python_hears_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_python_hears_ctrl_c")
def test_an_interrupted_run_leaves_no_process_and_waits_for_none(
    file: File, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    class Interrupted(ColourEngine):
        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            _thread.interrupt_main()  # as Ctrl-C does, while the run waits for a file
            return super().__call__(pixels)

    paths = [*(coloured(tmp_path, i) for i in range(4)), file("freeze"), file("freeze")]
    sink = MemorySink(len(paths), (3,))
    with (
        IsolatedLoader(LOADER, timeout_s=FOR_EVER_S) as load,
        pytest.raises(KeyboardInterrupt),
    ):
        run(enumerate(paths), load, engine=Interrupted(), sink=sink, workers=2)
    assert started
    assert all(process.returncode is not None for process in started)


@posix_only
@pytest.mark.parametrize("verb", ["hold", "cling"], ids=["idle", "hanging"])
def test_a_parent_that_is_killed_leaves_no_process(file: File, tmp_path: Path, verb: str) -> None:
    fifo = tmp_path / "fifo"  # held open by the child as long as it lives
    os.mkfifo(fifo)
    script = f"""
        import featx.child
        import signal  # as a program may have left it; children inherit both
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        featx.child._SPARE_S = -59  # so that a child that hangs ends itself after 60 - 59 s
        load = IsolatedLoader(Misbehaving(PLAIN), timeout_s=30)
        load(Path({str(file(f"{verb} {fifo}"))!r}))
        time.sleep({FOR_EVER_S})
    """
    with start_script(script, tmp_path) as parent, fifo.open("rb") as held:  # once it holds it
        parent.kill()
        parent.wait()
        assert held.read() == b""  # returns when nobody holds it any more


@posix_only
@pytest.mark.parametrize("n", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_left_open_after_many_crashes(
    file: File, n: int, started: list[subprocess.Popen[bytes]]
) -> None:
    path = file("segfault")
    before = sorted(os.listdir("/dev/fd"))  # noqa: PTH208
    with IsolatedLoader(LOADER) as load:
        for _ in range(n):
            assert failure(load, path)[0] == 5
    assert len(started) == 2 * n
    assert all(process.returncode == -signal.SIGSEGV for process in started)
    assert sorted(os.listdir("/dev/fd")) == before  # noqa: PTH208


# --- where processes cannot be had ----------------------------------------------------------------


def no_executable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: None)


def another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: "/bin/echo")


def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: b"/no/python")


def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (no_executable, "sys.executable does not say where Python is"),
        # what it was given ends with the list of folders, however long that is
        (another_program, r"'/bin/echo' ended before it was ready \(exit code 0\): .*\]\]"),
        (no_program, "'/no/python': .*No such file"),
        (frozen, "this is a frozen program"),
    ],
)
def test_where_no_process_can_be_started_files_are_decoded_here_with_a_warning(
    tmp_path: Path,
    spoil: Callable[[pytest.MonkeyPatch], None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    paths = [coloured(tmp_path, i) for i in range(8)]
    with (
        pytest.warns(RuntimeWarning, match=f"(?s)decoded in this process, .*{why}") as told,
        IsolatedLoader(LOADER) as load,
        ThreadPoolExecutor(3) as pool,
    ):
        pictures = list(pool.map(load, paths))
    assert [p.pixels[0, 0].tolist() for p in pictures] == [list(colour_of(i)) for i in range(8)]
    assert len(told) == 1


def test_a_file_that_crashed_is_never_decoded_here(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, count = featx.child._start, iter(range(9))

    def only_once(descriptor: int | None) -> subprocess.Popen[bytes]:
        if next(count):
            raise featx.child.NotStartedError("no more")
        return start(descriptor)

    monkeypatch.setattr(featx.child, "_start", only_once)
    with (
        IsolatedLoader(LOADER) as load,
        pytest.raises(FeatxError, match="no new process for decoding can be started: no more"),
    ):
        load(file("leave"))


def kill_starts(monkeypatch: pytest.MonkeyPatch, kills: set[int]) -> list[subprocess.Popen[bytes]]:
    """Let a signal end the starts of these numbers, as for want of memory; gives all starts."""
    start, made = featx.child._start, []

    def start_or_kill(descriptor: int | None) -> subprocess.Popen[bytes]:
        made.append(start(descriptor))
        if len(made) - 1 in kills:
            made[-1].kill()
            made[-1].wait()
        return made[-1]

    monkeypatch.setattr(featx.child, "_start", start_or_kill)
    return made


@posix_only
def test_a_process_that_is_killed_while_it_starts_is_started_twice_more(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kill_starts(monkeypatch, {1, 2})
    with IsolatedLoader(LOADER) as load:
        assert load(file(f"once {tmp_path / 'marker'}")).pixels[0, 0].tolist() == [1, 2, 3]
        assert load._n == len(load._all) == 1
    assert len(made) == 4
    assert all(process.returncode is not None for process in made)


@posix_only
def test_starts_that_are_all_killed_end_the_run_with_what_killed_them(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kill_starts(monkeypatch, set(range(1, 99)))
    words = r"can be started: .* ended before it was ready \(signal 9, SIGKILL, perhaps .*memory\)$"
    with IsolatedLoader(LOADER) as load, pytest.raises(FeatxError, match=words):
        load(file("leave"))
    assert len(made) == 4


def test_where_only_some_processes_can_be_started_they_do_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, count = featx.child._start, iter(range(99))
    refused: list[int] = []

    def only_once(descriptor: int | None) -> subprocess.Popen[bytes]:
        if next(count):
            refused.append(1)
            raise featx.child.NotStartedError("no more")
        return start(descriptor)

    monkeypatch.setattr(featx.child, "_start", only_once)
    paths = [coloured(tmp_path, i) for i in range(8)]
    with IsolatedLoader(LOADER) as load, ThreadPoolExecutor(3) as pool:
        load(paths[0])
        load._grow_at = 0.0
        pictures = list(pool.map(load, paths * 9))
    assert [p.pixels[0, 0, 0] for p in pictures] == list(range(8)) * 9


# --- other people's programs ----------------------------------------------------------------------


def start_script(script: str, folder: Path, *, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Run a program as users write them: without ``if __name__ == "__main__"``."""
    head = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from misbehaving import PLAIN, Misbehaving
        from featx.isolation import IsolatedLoader
    """
    path = folder / "script.py"
    path.write_text(textwrap.dedent(head) + textwrap.dedent(script))
    command = [sys.executable, "-P", "-W", "error", str(path)]
    return subprocess.Popen(command, cwd=cwd or folder, stdout=subprocess.PIPE, text=True)


def test_a_script_without_a_guard_is_not_run_again_in_the_processes(tmp_path: Path) -> None:
    script = f"""
        print("once")
        with IsolatedLoader(Misbehaving(PLAIN)) as load:
            print(load(Path({str(coloured(tmp_path, 7))!r})).pixels[0, 0].tolist())
    """
    with start_script(script, tmp_path) as program:
        out, _ = program.communicate()
    assert (program.returncode, out) == (0, "once\n[7, 0, 77]\n")


@pytest.mark.parametrize("name", ["numpy", "json", "PIL", "featx"])
def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / f"{name}.py").write_text("raise SystemExit('code from the current folder was run')")
    script = f"""
        sys.path.insert(0, "")  # as in an interactive session, or a notebook
        with IsolatedLoader(Misbehaving(PLAIN)) as load:
            print(load(Path({str(coloured(tmp_path, 7))!r})).pixels[0, 0].tolist())
    """
    with start_script(script, tmp_path, cwd=here) as program:
        out, _ = program.communicate()
    assert (program.returncode, out) == (0, "[7, 0, 77]\n")


def test_what_is_no_text_in_the_search_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("..")])  # as in many a notebook
    with IsolatedLoader(LOADER) as load:
        assert load(coloured(tmp_path, 7)).pixels[0, 0].tolist() == [7, 0, 77]


def test_paths_given_to_the_transformer_are_decoded_apart_too(file: File) -> None:
    small = {"engine": "torch-eager", "preprocessing": {"resize": 64, "crop": 64}}
    extractor = FeatureExtractor("squeezenet1_1", weights="random", batch_size=1, **small).fit()
    transform = extractor._built.backbone.transform
    extractor._built = replace(extractor._built, loader=Misbehaving(transform))
    pixels = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ImageError, match=r"image 1 \(.*\.png\) cannot be used: crashed the dec"):
        extractor.transform([pixels, file("leave"), pixels])
    assert extractor.transform([pixels, file("touch " + os.devnull)]).shape == (2, 512)


def test_the_command_line_records_a_file_that_crashes_its_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    for i in range(6):
        (images / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        coloured(images / "ab"[i % 2], i)
    marked = images / "a" / "4.png"
    Image.new("RGB", (37, 41)).save(marked)
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import ctypes
            from PIL import PngImagePlugin

            def load(self, load=PngImagePlugin.PngImageFile.load):
                return ctypes.string_at(0) if self.size == (37, 41) else load(self)

            PngImagePlugin.PngImageFile.load = load
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = ["extract", str(images), "--backbone", "squeezenet1_1", "--engine", "torch-eager"]
    command += ["--weights", "random", "--out", str(tmp_path / "a.h5"), "--max-failed", "0.5"]
    result = CliRunner().invoke(app, [*command, "--resize", "64", "--crop", "64"])
    assert result.exit_code == 3, result.output
    assert "crashed the decoder (signal 11, SIGSEGV)" in result.stderr
    features = featx.load(tmp_path / "a.h5")
    assert [(one.path, one.status) for one in features.failed] == [("a/4.png", 5)]
    assert list(features.paths) == ["a/0.png", "a/2.png", "b/1.png", "b/3.png", "b/5.png"]
    assert np.isfinite(features.X).all()
