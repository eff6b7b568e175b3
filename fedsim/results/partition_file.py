"""The file of a run's partition: each client's number of examples, and how many it has of each class."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.data.heterogeneity import Heterogeneity
from fedsim.reading import read_bytes
from fedsim.results.files import read_json
from fedsim.results.folder import RunFolder
from partitions import LabelCounts

CLASSES = b"classes"  # key of the file's metadata


def partition_bytes(measured: Heterogeneity) -> bytes:
    """Return a parquet file with a row per client, and its origin if that has a name; its metadata name the classes."""
    counts = measured.counts
    # Folders whose names are no UTF-8 have surrogates, which no parquet file holds.
    origins = [name.encode(errors="backslashreplace").decode() for name in measured.origins]
    columns = {"origin": pa.array(origins, pa.string())} if origins else {}
    table = pa.table(
        {
            **columns,
            "examples": pa.array(measured.sizes.astype(np.int64)),
            "labels": pa.ListArray.from_arrays(pa.array(counts.offsets, pa.int32()), pa.array(counts.labels)),
            "counts": pa.ListArray.from_arrays(pa.array(counts.offsets, pa.int32()), pa.array(counts.counts)),
        }
    ).replace_schema_metadata({CLASSES: json.dumps(measured.classes)})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_partition(folder: RunFolder) -> Heterogeneity:
    """Read the partition of a run, also of an earlier version, which wrote JSON.

    Raises
    ------
    ConfigError, OSError, ValueError, LookupError
        If the file is damaged.
    """
    if not folder.partition.exists() and folder.partition_json.exists():
        return Heterogeneity.from_json(read_json(folder.partition_json, dict))
    table = pq.read_table(io.BytesIO(read_bytes(folder.partition))).combine_chunks()
    labels, counts = (table[name].combine_chunks() for name in ("labels", "counts"))
    classes = tuple(json.loads(table.schema.metadata[CLASSES]))
    offsets, held = labels.offsets.to_numpy().astype(np.int64), labels.values.to_numpy()
    if not np.array_equal(offsets, counts.offsets.to_numpy()):
        raise ValueError(f"{folder.partition} has other numbers of labels than of their counts")
    row = LabelCounts(offsets, held, counts.values.to_numpy(), len(classes))
    origins = tuple(map(str, table["origin"].to_pylist())) if "origin" in table.column_names else ()  # as before 0.15
    return Heterogeneity(table["examples"].to_numpy(), row, classes, origins)
