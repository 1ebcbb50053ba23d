"""Caches, heads and weights made to harm: refused in one line, nothing run, nothing else read."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from fuzz.mutations import Sealed, find_seals
from synthetic import SPEC, write_cache

from featx.cache import CacheWriter, Status, open_cache, partial_path
from featx.cache.metadata import read_metadata
from featx.errors import CacheError, HeadError, WeightsError
from featx.evaluation import evaluate
from featx.fitting import fit_head
from featx.heads import LogisticHead, load_head, save_head
from featx.recorded import pipeline_of_spec
from featx.weight_files import is_local_weights
from featx.weights import read_state_dict
from featx.workspace import cache_of_head

N = 10
Make = Callable[[h5py.File], Any]


# --- caches: everything that HDF5 can do and a cache does not -------------------------------------


def dataset(shape: Any, dtype: Any, **options: Any) -> Make:
    return lambda file: file.create_dataset("labels", shape, dtype, **options)


def compact(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((N,))
    h5py.h5d.create(file.id, b"labels", h5py.h5t.STD_I64LE, space, plist)


def committed(file: h5py.File) -> None:
    file["type"] = np.dtype("<i8")
    file.create_dataset("labels", (N,), file["type"])
    del file["type"]


def looped_group(file: h5py.File) -> None:
    group = file.create_group("labels")
    group["labels"] = group


def dense_attributes(file: h5py.File) -> None:
    file["labels"] = np.zeros(N, "<i8")
    for i in range(30):
        file.attrs[f"a{i}"] = np.zeros(1000)


def set_attribute(value: Any) -> Make:
    def make(file: h5py.File) -> None:
        file["labels"] = np.zeros(N, "<i8")
        file.attrs["plan"] = value(file) if callable(value) else value

    return make


HARMFUL: dict[str, Make] = {
    "soft link to itself": lambda f: f.__setitem__("labels", h5py.SoftLink("/labels")),
    "external link to itself": lambda f: f.__setitem__(
        "labels", h5py.ExternalLink(f.filename, "labels")
    ),
    "another name for groups": lambda f: f.__setitem__("labels", f["groups"]),
    "a group that holds itself": looped_group,
    "the root": lambda f: f.__setitem__("labels", f["/"]),
    "checksums of chunks": dataset((N,), "<i8", chunks=(N,), fletcher32=True),
    "shuffled": dataset((N,), "<i8", chunks=(N,), shuffle=True),
    "chunked": dataset((N,), "<i8", chunks=(2,)),
    "can grow": dataset((N,), "<i8", maxshape=(None,)),
    "compact": compact,
    "no rows": dataset((0,), "<i8"),
    "a scalar": dataset((), "<i8"),
    "no space at all": lambda f: f.create_dataset("labels", data=h5py.Empty("<i8")),
    "five axes": dataset((N, 1, 1, 1, 1), "<i8"),
    "2**60 rows of it": dataset((2**60,), "<i8"),
    "external storage": dataset((N,), "<i8", external=[("other", 0, 8 * N)]),
    "committed type": committed,
    "a type, no dataset": lambda f: f.__setitem__("labels", np.dtype("<i8")),
    "object references": dataset((N,), h5py.ref_dtype),
    "region references": dataset((N,), h5py.regionref_dtype),
    "compound": dataset((N,), [("a", "<i4"), ("b", "<i4")]),
    "enum": dataset((N,), h5py.enum_dtype({"a": 1}, "<i8")),
    "opaque": dataset((N,), np.dtype("V8")),
    "arrays": dataset((N,), np.dtype("(2,)<i4")),
    "variable length": dataset((N,), h5py.vlen_dtype("<i8")),
    "variable text": dataset((N,), h5py.string_dtype()),
    "big-endian": dataset((N,), ">i8"),
    "complex": dataset((N,), "<c8"),
    "one dataset more": lambda f: (
        f.__setitem__("labels", np.zeros(N, "<i8")),
        f.__setitem__("more", np.zeros(1, "<i8")),
    ),
    "dense attributes": dense_attributes,
    "attribute of a number": set_attribute(7),
    "attribute of variable text": set_attribute("{}"),
    "attribute of a reference": set_attribute(lambda f: f["groups"].ref),
    "attribute of an array": set_attribute(np.zeros(9, "S3")),
    "attribute of 60 kB": set_attribute(np.bytes_(b" " * 60_000)),
    "attribute of nothing": set_attribute(h5py.Empty("S3")),
}


# What each is refused for, so that a check that is gone is missed although another stands behind.
REFUSED_FOR = {
    "is a link; a featx cache has none": ("soft link to itself", "external link to itself"),
    "message of type 0x16": ("another name for groups", "the root"),
    "message of type 0x2,": ("a group that holds itself", "the root below itself"),
    "message of type 0xb,": ("checksums of chunks", "shuffled"),
    "message of type 0x7,": ("external storage",),
    "its layout (contiguous is 1) is": ("chunked", "compact"),
    "it can be resized": ("can grow",),
    "expected <i8(10,)": ("no rows", "a scalar", "2**60 rows of it"),
    "a shape has": ("no space at all", "five axes"),
    "a message is shared": ("committed type",),
    "it lacks a shape, a type or a place": ("a type, no dataset",),
    "it has a type that no featx cache has": (
        "object references", "region references", "compound", "enum", "opaque", "arrays",
        "variable length", "variable text", "big-endian", "complex",
    ),
    "missing or unexpected datasets: more": ("one dataset more",),
    "it has no attribute 'format'": ("dense attributes",),
    "'plan' is no fixed-length text": (
        "attribute of a number", "attribute of variable text", "attribute of a reference",
        "attribute of an array", "attribute of nothing",
    ),
    "its plan is not JSON": ("attribute of 60 kB",),
    "reaches past its end": (
        "a bomb of 2**59 rows", "labels lie past the end", "labels lie nowhere",
    ),
    "datasets 'groups' and 'labels' overlap": ("labels lie over groups",),
    "its spec does not match its fingerprint": ("a spec of another network",),
    "the name 'groups' is there twice": ("a name twice",),
    "continued too often or too far": ("a continuation without end",),
    "the checksum of its OHDR block is wrong": ("a flipped byte of a header",),
    "the checksum of its FHDB block is wrong": ("a flipped byte of the heap",),
    "there is no OHDR block": ("an old header",),
}  # fmt: skip


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cache spoilt in each of these ways by h5py, and in more that h5py cannot."""
    folder = tmp_path_factory.mktemp("caches")
    whole = write_cache(folder / "whole.h5", n=N).read_bytes()
    paths = {}
    for i, (name, make) in enumerate(HARMFUL.items()):
        paths[name] = path = folder / f"{i}.h5"
        path.write_bytes(whole)
        with h5py.File(path, "r+", libver="latest") as file:
            del file["labels"]
            make(file)
    for name, data in by_hand(whole).items():
        paths[name] = folder / f"{name}.h5"
        paths[name].write_bytes(data)
    return paths


def by_hand(whole: bytes) -> dict[str, bytes]:
    """Bytes of the cache changed, with HDF5's checksums put right again."""
    file = Sealed(whole, find_seals(whole))
    offsets = {name: stored.offset for name, stored in _metadata(whole).items()}

    def changed(old: bytes, new: bytes) -> bytes:
        data = bytearray(whole)
        for seal in file.seals:
            data[seal.start : seal.stop] = data[seal.start : seal.stop].replace(old, new)
        assert data != whole
        return bytes(file.resealed(data))

    address = {name: struct.pack("<Q", offset) for name, offset in offsets.items()}

    def flipped(at: int) -> bytes:
        data = bytearray(whole)
        data[at] ^= 1
        return bytes(data)

    heap = whole.index(b"\x06labels")
    return {
        "a flipped byte of a header": flipped(whole.index(b"OHDR", 8000) + 100),
        "a flipped byte of the heap": flipped(heap + 3),
        "an old header": flipped(whole.index(b"OHDR", 8000)),
        "a bomb of 2**59 rows": changed(struct.pack("<Q", N), struct.pack("<Q", 2**59)),
        "labels lie over groups": changed(address["labels"], address["groups"]),
        "labels lie past the end": changed(address["labels"], struct.pack("<Q", len(whole) - 8)),
        "labels lie nowhere": changed(address["labels"], b"\xff" * 8),
        "a spec of another network": changed(b"squeezenet1_1", b"squeezenet1_0"),
        "a name twice": changed(b"\x06labels", b"\x06groups"),
        "the root below itself": changed(b"\x06labels" + _address_of(whole, b"labels"),
                                         b"\x06labels" + struct.pack("<Q", 4096)),
        "a continuation without end": changed(
            bytes.fromhex("15 1200 04"), bytes.fromhex("10 1200 04")
        ),
    }  # fmt: skip


def _metadata(data: bytes) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.h5").write_bytes(data)
        return read_metadata(Path(folder) / "a.h5").datasets


def _address_of(data: bytes, name: bytes) -> bytes:
    at = data.index(bytes([len(name)]) + name) + 1 + len(name)
    return data[at : at + 8]


def test_no_structure_but_a_caches_own_is_accepted(harmful: dict[str, Path]) -> None:
    words_of = {name: words for words, names in REFUSED_FOR.items() for name in names}
    assert words_of.keys() == harmful.keys()
    for name, path in harmful.items():
        with pytest.raises(CacheError) as caught:
            open_cache(path)
        text = str(caught.value)
        assert str(path) in text, name
        assert words_of[name] in text, (name, text)
        assert text.isprintable(), name
        assert len(text) < 600, name


def test_opening_a_harmful_cache_opens_nothing_else(
    harmful: dict[str, Path], tmp_path: Path
) -> None:
    paths = [str(path) for path in harmful.values()]
    whole = str(write_cache(tmp_path / "whole.h5"))
    events = audited(f"import featx; featx.load({whole!r})", "featx.load", paths)
    assert {event[0] for event in events} <= {"open", "refused CacheError"}
    assert {event[1] for event in events if event[0] == "open"} == set(paths)
    assert sum(event[0] == "refused CacheError" for event in events) == len(paths)


def audited(imports: str, reader: str, paths: list[str], folder: str = "") -> list[list[str]]:
    """What Python itself sees a process do while `reader` reads each of `paths`."""
    program = f"""
import json, sys
sys.path.insert(0, {folder!r} or sys.path[0])
{imports}
WATCHED = ("open", "import", "exec", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.")
QUIET = ("os.listdir", "os.scandir")
seen = []
def watch(event, args):
    if on and event.startswith(WATCHED) and event not in QUIET:
        seen.append([event, str(args[0])])
on = False
sys.addaudithook(watch)
for path in json.load(sys.stdin):
    on = True
    try:
        {reader}(path)
        result = "read"
    except Exception as error:
        result = "refused " + type(error).__name__
        assert "\\n" not in str(error)
    finally:
        on = False
    seen.append([result, path])
print(json.dumps(seen))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(paths), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    events: list[list[str]] = json.loads(run.stdout)
    return events


def test_the_metadata_read_here_are_those_the_hdf5_library_reads(tmp_path: Path) -> None:
    for n, root, spec in ((3, "/birds", SPEC), (700, "/é" * 1500, {**SPEC, "note": "x" * 50_000})):
        path = write_cache(tmp_path / "a.h5", n=n, root=root, spec=spec)
        ours = read_metadata(path)
        with h5py.File(path) as file:
            assert set(file) == set(ours.datasets)
            for name, stored in ours.datasets.items():
                theirs = file[name]
                assert (stored.shape, stored.dtype.str) == (theirs.shape, theirs.dtype.str)
                assert stored.offset == theirs.id.get_offset()
            assert set(file.attrs) == set(ours.attributes)
            for name, value in ours.attributes.items():
                assert bytes(file.attrs[name]) == value


def test_an_unfinished_cache_with_a_status_that_means_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    whole = open_cache(write_cache(path, n=N))
    path.rename(partial_path(path))
    with partial_path(path).open("r+b") as stream:
        stream.seek(whole.offsets["status"] + 3)
        stream.write(bytes([len(Status)]))
    with pytest.raises(CacheError, match="damaged: 1 of its rows have no valid status"):
        CacheWriter.resume(path)


# --- heads ----------------------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return fit_head(write_cache(tmp_path / "cache" / "a.h5"), C=1.0).path


def rerecorded(head: Path, **changes: dict[str, Any]) -> Path:
    """The head with parts of what it says of its features changed, and its digest put right."""
    file = load_head(head)
    cache = file.metadata["cache"]
    for part, values in changes.items():
        if isinstance(cache[part], dict):
            cache[part] = cache[part] | values
        else:
            cache[part] = values
    metadata = file.metadata | {"cache": cache}
    return save_head(
        head, file.head, classes=file.classes, metadata=metadata, split=dict(file.split)
    )


def tensors_at(spans: dict[str, tuple[int, int]], n: int) -> bytes:
    """A safetensors file of float64 vectors that lie at these bytes of its data."""
    header: dict[str, Any] = {
        name: {"dtype": "F64", "shape": [(b - a) // 8], "data_offsets": [a, b]}
        for name, (a, b) in spans.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(n)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x07\0\0\0\0\0\0\0",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
        tensors_at({"mean": (0, 16), "scale": (8, 24)}, 24),
        tensors_at({"mean": (0, 16), "scale": (0, 16)}, 16),
        tensors_at({"mean": (0, 2**40)}, 16),
        tensors_at({"mean": (16, 0)}, 16),
        pickle.dumps({"a": 1}),
        b"PK\3\4" + bytes(100),
    ],
    ids=range(12),
)
def test_a_head_with_a_garbled_header_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(HeadError, match=r"is not a head file, or is damaged|cannot be used") as e:
        load_head(path)
    assert str(e.value).isprintable()


def test_a_head_of_values_no_fit_gives_is_refused(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    fitted = LogisticHead(C=1.0, device="cpu").fit(X, np.arange(20) % 2)
    for name, value in (("mean_", 1e200), ("scale_", 1e-200)):
        before = getattr(fitted, name)
        setattr(fitted, name, before * 0 + value)
        with pytest.raises(ValueError, match="holds values that no fit gives"):
            save_head(tmp_path / "a.safetensors", fitted, classes=["a", "b"])
        setattr(fitted, name, before)


def test_a_head_names_no_cache_outside_its_folder(head: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (head.parent / "a.h5").rename(outside / "a.h5")
    rerecorded(head, file="../elsewhere/a.h5", path="")
    with pytest.raises(CacheError, match="name a cache: featx evaluate CACHE"):
        evaluate(head=head)
    rerecorded(head, file="a.h5", path=str(outside / "a.h5"))
    assert evaluate(head=head, bootstrap=0).cache == outside / "a.h5"


@pytest.mark.parametrize("path", ["/dev/zero", "/etc/passwd", "pipe.h5", "\0", "x" * 5000])
def test_only_a_cache_is_looked_at_where_a_head_says_its_cache_lay(
    path: str, tmp_path: Path
) -> None:
    if path == "pipe.h5" and hasattr(os, "mkfifo"):
        path = str(tmp_path / path)
        os.mkfifo(path)
    recorded = {"file": path, "path": path, "fingerprint": "", "root": ""}
    with pytest.raises(CacheError, match="name a cache"):
        cache_of_head(recorded, tmp_path / "a.safetensors")


def spec_and_plan(weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = SPEC | {"exif": True, "max_pixels": 1000, "transform": {}}
    return spec, {"weights": {"name": "mine.pth", "path": "", "seed": 0} | weights}


def test_a_recorded_weights_file_is_hashed_before_anything_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.pth").write_bytes(b"somebody's secret")
    monkeypatch.setattr("featx.torchvision_backbones.read_state_dict", None)
    with pytest.raises(HeadError, match=r"but .*mine\.pth has [0-9a-f]{16}…; give the right file"):
        pipeline_of_spec(*spec_and_plan({"path": str(tmp_path / "mine.pth")}))


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes have paths on POSIX only")
def test_a_recorded_weights_path_that_never_ends_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "mine.pth")
    (tmp_path / "empty.pth").touch()
    with (tmp_path / "huge.pth").open("wb") as stream:
        stream.truncate(2**41)
    paths = [
        tmp_path / "mine.pth",
        tmp_path / "empty.pth",
        tmp_path / "huge.pth",
        Path("/dev/zero"),
    ]
    monkeypatch.setattr("featx.recorded.sha256_file", None)
    for path in (*paths, tmp_path):
        assert not is_local_weights(path)
        with pytest.raises(WeightsError, match="which is no plain file of weights; give the file"):
            pipeline_of_spec(*spec_and_plan({"path": str(path), "name": path.name}))


def test_windows_is_not_asked_for_files_of_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("featx.weights.os.name", "nt")
    monkeypatch.setattr("featx.weights.os.stat", asked.append)
    for path in (r"\\host\share\a.pth", "//host/share/a.pth", r"\/host\share\a.pth"):
        assert not is_local_weights(path)
    assert asked == []


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"backbone": None}}, {"spec": {"transform": []}}, {"spec": {"cut": 3}},
        {"spec": {"exif": "yes"}}, {"spec": {"max_pixels": 1e9}}, {"plan": {"weights": []}},
        {"plan": {"weights": {"path": 5}}}, {"plan": {"weights": {"seed": "x"}}},
        {"plan": {"weights": {"name": "../a.pth", "path": ""}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_garbled_record_of_how_features_were_made_is_refused(changes: dict[str, Any]) -> None:
    spec, plan = spec_and_plan({"name": "random"})
    with pytest.raises(HeadError, match=r"garbled|as the name of its weights"):
        pipeline_of_spec(spec | changes.get("spec", {}), plan | changes.get("plan", {}))


# --- weights --------------------------------------------------------------------------------------


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Named:
    """Unpickled, it takes a name from a module, which imports the module."""


Named.__module__, Named.__qualname__ = "evil_module", "Named"


def weights_files(folder: Path) -> dict[str, Path]:
    """Weights files that would each make the file `proof`, were anything in them run."""
    proof = folder / "proof"
    (folder / "evil_module.py").write_text(f"open({str(proof)!r}, 'w')\nclass Named: pass\n")
    module = type(sys)("evil_module")
    module.Named = Named  # type: ignore[attr-defined]
    sys.modules["evil_module"] = module
    payloads = {
        "system": Call(os.system, f"touch '{proof}'"),
        "exec": Call(exec, f"open({str(proof)!r}, 'w')"),
        "nested": {"state_dict": {"a": [Call(os.mkdir, str(proof))]}},
        "import": Named(),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
    }
    made = {}
    try:
        for name, payload in payloads.items():
            for form in ("zip", "legacy", "plain"):
                path = folder / f"{name}_{form}.pth"
                content = {"w": torch.ones(2), "x": payload}
                if form == "plain":
                    path.write_bytes(pickle.dumps(payload, protocol=2))
                else:
                    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
                made[path.stem] = path
    finally:
        del sys.modules["evil_module"]
    made["script"] = folder / "script.pth"
    with zipfile.ZipFile(folder / "system_zip.pth") as old:
        root = old.namelist()[0].split("/")[0]
        with zipfile.ZipFile(made["script"], "w") as new:
            for entry in old.namelist():
                new.writestr(entry, old.read(entry))
            new.writestr(f"{root}/constants.pkl", pickle.dumps(payloads["system"], protocol=2))
            new.writestr(f"{root}/code/__torch__.py", f"open({str(proof)!r}, 'w')")
    made["safetensors"] = folder / "pickle.safetensors"
    made["safetensors"].write_bytes(made["system_zip"].read_bytes())
    for i, data in enumerate(
        (b"\xff" * 40, struct.pack("<Q", 2**62), tensors_at({"a": (8, 4)}, 9))
    ):
        made[f"bad{i}"] = folder / f"bad{i}.safetensors"
        made[f"bad{i}"].write_bytes(data)
    return made


def test_weights_that_would_run_code_run_nothing_and_import_nothing(tmp_path: Path) -> None:
    paths = [str(path) for path in weights_files(tmp_path).values()]
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "good.safetensors")
    good = [str(tmp_path / name) for name in ("good.pth", "old.pth", "good.safetensors")]
    imports = (
        "import encodings.cp437\n"  # of names in a zip archive
        "from featx.weights import read_state_dict\n"
        f"for path in {good!r}: read_state_dict(path)"
    )
    events = audited(imports, "read_state_dict", paths, folder=str(tmp_path))
    results = {event[1]: event[0] for event in events if event[0].startswith(("re",))}
    assert results == dict.fromkeys(paths, "refused WeightsError")
    others = [e for e in events if e[0] not in ("open", "refused WeightsError")]
    assert others == []
    assert {e[1] for e in events if e[0] == "open"} <= set(paths)
    assert not (tmp_path / "proof").exists()


def test_the_payloads_do_run_where_nothing_guards_them(tmp_path: Path) -> None:
    files = weights_files(tmp_path)
    program = "import pickle, sys; sys.path.insert(0, sys.argv[2]); "
    program += "pickle.load(open(sys.argv[1], 'rb'))"
    for name in ("system_plain", "exec_plain", "import_plain"):
        (tmp_path / "proof").unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", program, files[name], tmp_path], check=True)
        assert (tmp_path / "proof").exists(), name


def test_a_packed_archive_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "packed.pth").stat().st_size < 50_000
    assert read_state_dict(tmp_path / "a.pth")["w"].shape == (2**20,)
    with pytest.raises(WeightsError, match=r"is a packed archive of 4,\d+,\d+ bytes in \d+,\d+"):
        read_state_dict(tmp_path / "packed.pth")
