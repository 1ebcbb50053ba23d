"""A fuzzing target for every file featx reads that somebody else may have made.

    python -m tests.fuzz.readers --seconds 60 [--seed 1] [--target cache] [--keep FOLDER]

Each function of `TARGETS` takes bytes and reads them as one kind of file. The only ways out are a
result and a documented `FeatxError` on one line; everything else is a finding. Run as a program,
cases are drawn by number from valid files, in a child process, so that a crash of a library
below, a hang and a large allocation are findings too: told with seed and number, and gone past.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import featx
from featx.cache import CacheWriter, Rows, Status, open_cache, partial_path, verify
from featx.errors import CacheError, FeatxError, HeadError, InputError
from featx.images import list_images

if __package__ == "tests.fuzz":
    from tests.fuzz.hunting import Target, hunt
    from tests.fuzz.mutations import Sealed, find_seals
else:
    from fuzz.hunting import Target, hunt
    from fuzz.mutations import Sealed, find_seals

MAX_MESSAGE = 2_000
MAX_KINDS = 20


class Finding(AssertionError):
    """A reader did what it must not."""


def _allowed(read: Callable[[], Any], *errors: type[FeatxError]) -> bool:
    """Whether `read` accepts its file; a documented error is a refusal, any other a finding."""
    try:
        read()
    except errors as error:
        text = str(error)
        if "\n" in text or not 0 < len(text) <= MAX_MESSAGE:
            raise Finding(f"the message is not one line: {text[:300]!r}") from error
        return False
    return True


def read_cache(data: bytes, folder: Path) -> bool:
    """Read `data` as a cache, finished and unfinished, and touch everything in it."""
    path = folder / "case.h5"
    path.write_bytes(data)

    def finished() -> None:
        features = featx.load(path)
        features.X.sum(dtype=np.float64)
        assert len(features.paths) == len(features.y) == len(features.X)
        repr(features), features.names, features.files, features.split_codes
        features.take(np.arange(len(features))[::-1])

    def checked() -> None:
        str(verify(path))

    def unfinished() -> None:
        file = open_cache(path.rename(partial_path(path)), partial=True)
        np.flatnonzero(file.read("status") == Status.PENDING)
        assert len(file.paths) == len(file)
        assert sum(file.counts().values()) == len(file)
        file.classes, file.run, file.map("features").sum(dtype=np.float64)

    accepted = [_allowed(read, CacheError) for read in (finished, checked, unfinished)]
    return all(accepted)  # all three are tried, whatever the first says


def read_head(data: bytes, folder: Path) -> bool:
    """Read `data` as a head file, and predict with what it holds."""
    from featx.heads.file import load_head

    path = folder / "case.safetensors"
    path.write_bytes(data)

    def predict() -> None:
        file = load_head(path)
        found = file.head.predict_proba(np.zeros((2, file.head.n_features_in_)))
        assert found.shape == (2, len(file.classes))

    return _allowed(predict, HeadError)


def read_list(data: bytes, folder: Path) -> bool:
    """Read `data` as a CSV and as a text list of images."""
    for name in ("a.jpg", "ü, b.jpg"):
        (folder / name).touch()
    accepted = False
    for name in ("case.csv", "case.txt"):
        (folder / name).write_bytes(data)
        accepted |= _allowed(functools.partial(list_images, folder / name), InputError)
    return accepted


# --- valid files ----------------------------------------------------------------------------------


def _caches(folder: Path) -> list[bytes]:
    made = []
    for n, shape, dtype, classes in (
        (3, (5,), "float32", ("a", "bü")),
        (2, (2, 3, 3), "float16", ()),
    ):
        rows = Rows(
            paths=[b"%02d\xff.jpg" % i for i in range(n)],
            labels=np.arange(n) % 2 if classes else np.full(n, -1),
            split=np.arange(n, dtype=np.uint8) % 3,
            groups=np.full(n, -1),
            size_bytes=np.arange(n),
            mtime_ns=np.arange(n),
            classes=classes,
        )
        path = folder / f"{n}.h5"
        writer = CacheWriter.create(
            path, rows, root="/birds", spec={"backbone": "tiny", "shape": list(shape)},
            plan={"engine": "torch-eager"}, feature_shape=shape, dtype=dtype,
        )  # fmt: skip
        writer.put(np.arange(n - 1), np.ones((n - 1, *shape), dtype), np.zeros((n - 1, 32), "u1"))
        writer.commit()
        made.append(partial_path(path).read_bytes())
        writer.fail(n - 1, Status.UNDECODABLE, "cut short")
        writer.finish(path, {"images": n})
        made.append(path.read_bytes())
    return made


def _sealed(data: bytes) -> Sealed:
    return Sealed(data, find_seals(data))


def _heads(folder: Path) -> list[bytes]:
    from featx.heads import LinearHead, LogisticHead, MLPHead, save_head

    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    X = rng.normal(size=(30, 4)) + y[:, None]
    made = []
    for head in (LogisticHead(C=1.0), LinearHead(epochs=2), MLPHead((3,), epochs=2)):
        split = {"train": np.zeros((4, 32), np.uint8)}
        record = {"cache": {"spec": {"backbone": "tiny"}}, "note": [1, 2.5, None, True]}
        path = save_head(
            folder / "a.safetensors", head.set_params(device="cpu").fit(X, y),
            classes=["a", "bü", "c"], split=split, metadata=record,
        )  # fmt: skip
        made.append(path.read_bytes())
    return made


def _redigested(data: bytes) -> bytes:
    """A head file whose digest fits its contents, where they can still be told apart."""
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    from featx.heads.contents import canonical, digest_of

    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["featx"])
        tensors = load(data)
        header["digest"] = digest_of(header, tensors)
        return save(tensors, {"featx": canonical(header)})
    except (ValueError, TypeError, LookupError, AttributeError, struct.error, RecursionError,
            SafetensorError):  # fmt: skip
        return data


def _lists(folder: Path) -> list[bytes]:
    return [
        'path,label,split,group\na.jpg,x,train,1\n"ü, b.jpg",y,val,2\n'.encode(),
        "\ufeffpath;label\r\na.jpg;x\r\nü, b.jpg;y\r\n".encode(),
        b"label\tpath\twhen\nx\ta.jpg\t1\n\n",
        "a.jpg\nü, b.jpg\n".encode(),
        b"../\xff.jpg\n" + b"a.jpg\n" * 3 + b'"\0,\x1a\x85\xe2\x80\xa8' * 5,
    ]


TARGETS = {
    "cache": Target(read_cache, _caches, seal=_sealed),
    "head": Target(read_head, _heads, mend=_redigested),
    "list": Target(read_list, _lists),
}


def _tell(name: str, seed: int, findings: Sequence[tuple[int, str]], keep: Path | None) -> None:
    """Print each kind of finding once, with the commands that repeat its first cases."""
    kinds: dict[str, list[int]] = {}
    for number, why in findings:
        # the same place in the code is the same kind, whatever bytes led there
        places = re.findall(r'File ".*", line \d+, in \w+', why)
        kinds.setdefault(places[-1] if places else why, []).append(number)
        if len(kinds) > MAX_KINDS:
            break
    reasons = dict(reversed(findings))
    for numbers in kinds.values():
        print(f"\n{len(numbers):,} times:\n{reasons[numbers[0]]}")
        for number in numbers[:3]:
            print(f"  again: --target {name} --seed {seed} --first {number} --cases 1")
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{seed}-{number}").write_bytes(TARGETS[name].case(seed, number))


def main(arguments: Sequence[str] | None = None) -> int:
    """Hunt in every target in turn; 1 where something was found."""
    parser = argparse.ArgumentParser(description="Fuzz featx's readers of files.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, help="instead of --seconds")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--keep", type=Path, help="folder for the bytes of what is found")
    asked = parser.parse_args(arguments)
    n_found = 0
    for name in asked.target or TARGETS:
        tally = hunt(
            TARGETS[name], seed=asked.seed, first=asked.first, cases=asked.cases,
            seconds=None if asked.cases is not None else asked.seconds,
        )  # fmt: skip
        print(
            f"{name}: {tally.tried:,} cases, {tally.accepted:,} accepted, "
            f"{len(tally.findings):,} findings",
            flush=True,
        )
        _tell(name, asked.seed, tally.findings, asked.keep)
        n_found += len(tally.findings)
    return 1 if n_found else 0


if __name__ == "__main__":
    sys.exit(main())
