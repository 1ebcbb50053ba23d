"""Features as Parquet: for pandas, Polars, DuckDB, Arrow, Spark."""

from __future__ import annotations

from typing import Any, BinaryIO

from featx.errors import MissingExtraError
from featx.interchange.exported import Exported


def write_parquet(stream: BinaryIO, exported: Exported) -> None:
    """Write path, label, y, split, group, sha256 and features, a list of fixed size in each row.

    A map's values are in C order, its shape under ``featx.shape`` in the file's metadata; beside it
    featx.spec, featx.plan, featx.fingerprint, featx.classes and featx.root, all of them JSON. What
    an image has not is null. Paths are text or, where one of them is no UTF-8, bytes.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    """
    pa, pq = _pyarrow()
    value = pa.from_numpy_dtype(exported.dtype)
    path_type = pa.string() if _all_text(exported) else pa.binary()
    schema = pa.schema(
        [
            pa.field("path", path_type, nullable=False),
            pa.field("label", pa.string()),
            pa.field("y", pa.int64(), nullable=False),
            pa.field("split", pa.string()),
            pa.field("group", pa.int64()),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("features", pa.list_(value, exported.d), nullable=False),
        ],
        metadata={f"featx.{name}": text for name, text in exported.described().items()},
    )
    texts = [name for name in schema.names if name != "features"]  # no dictionary of floats
    with pq.ParquetWriter(stream, schema, use_dictionary=texts, write_statistics=texts) as writer:
        for block in exported.blocks():
            groups = exported.groups[block]
            values = pa.array(exported.features(block).reshape(-1), type=value)
            columns = [
                pa.array(exported.paths(block), type=pa.binary()).cast(path_type),
                pa.array(map(_text, exported.labels(block)), type=pa.string()),
                pa.array(exported.y[block]),
                pa.array([name or None for name in exported.splits(block)], type=pa.string()),
                pa.array(groups, mask=groups < 0),
                pa.array(exported.hashes(block), type=pa.string()),
                pa.FixedSizeListArray.from_arrays(values, exported.d),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _text(name: str | None) -> str | None:
    """A class name without the half surrogates that stand for bytes which are no UTF-8."""
    return None if name is None else name.encode("utf-8", "backslashreplace").decode("utf-8")


def _all_text(exported: Exported) -> bool:
    try:
        for path in exported.paths(slice(None)):
            path.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need the package pyarrow: pip install 'featx[parquet]', or export to "
            "npz or csv"
        ) from error
    return pyarrow, pyarrow.parquet
