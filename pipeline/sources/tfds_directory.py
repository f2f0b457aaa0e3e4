"""Prepared TFDS datasets, read without TensorFlow: array_record, parquet and TFRecord directories.

TFDS itself only describes: which rows of which files a split such as "train[:10%]+test" means, and how the
features of an example are decoded. Its descriptions are small files, copied beforehand so that a dataset can
lie in any store; the data is read here. Nothing is ever downloaded or prepared, and features that are not
TFDS's own are refused, because TFDS would import the code they name.

Text comes as str where it is valid UTF-8, arrays come as lists. Images are decoded only when they are asked
for; audio and video, which TFDS cannot even describe without TensorFlow, are left out.
"""

from __future__ import annotations

import json
import posixpath
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from fsspec.core import strip_protocol

from pipeline import storage
from pipeline.errors import InputError
from pipeline.sources.array_records import read_array_records
from pipeline.sources.base import Parsed, WorkItem, text_if_utf8
from pipeline.sources.parquet import count_rows, read_batches
from pipeline.sources.tfrecord import read_tfrecords

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"
_NAME = re.compile(r"(\w[\w-]*)(?:/(\w[\w.+-]*))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_DESCRIPTIONS = (".json", ".txt")
_OWN_FEATURES = "tensorflow_datasets.core.features."
_NEED_TENSORFLOW = (_OWN_FEATURES + "audio_feature.", _OWN_FEATURES + "video_feature.")


class _Piece(NamedTuple):
    """What a split takes from one data file."""

    file: str
    first: int
    stop: int
    file_rows: int


class TfdsSource:
    """One split of a prepared dataset."""

    def __init__(self, name: str, split: str | None, data_dir: str | None) -> None:
        self._directory = _find(name, data_dir or _DEFAULT_DATA_DIR)
        info = _describe(self._directory)
        self._features = info.features
        self._file_format = info.file_format.value
        if self._file_format not in _RECORDS:
            formats = ", ".join(_RECORDS)
            raise InputError(f"{name} is stored as {self._file_format}; prepare it as one of {formats}")
        self._pieces = _pieces(info, name, split)

    def files(self) -> list[storage.FileFacts]:
        names = dict.fromkeys(["features.json", *(piece.file for piece in self._pieces)])
        return [storage.stat(storage.join(self._directory, name)) for name in names]

    def work_items(self, shard_rows: int) -> Iterator[WorkItem]:
        shards = count()
        for piece in self._pieces:
            url = storage.join(self._directory, piece.file)
            if self._file_format == "parquet" and (found := count_rows(url)) != piece.file_rows:
                raise InputError(
                    f"{url} has {found} rows where its dataset counts {piece.file_rows}; TFDS 4.9.10 loses rows when"
                    " it writes more than 100 to a Parquet file: prepare the dataset again as array_record"
                )
            for start in range(piece.first, piece.stop, shard_rows):
                stop = min(start + shard_rows, piece.stop)
                yield WorkItem(
                    shard=next(shards),
                    source=url,
                    format="tfds",
                    source_file=piece.file,
                    first_row=start,
                    rows=stop - start,
                    start=start,
                    stop=stop,
                    options=(("file_format", self._file_format),),
                )

    def columns(self) -> dict[str, pa.DataType]:
        """Sorted by name, as values are: TFDS restores the features in an order that changes from run to run."""
        return {name: _arrow_type(self._features[name]) for name in sorted(self._features)}


def read(item: WorkItem, columns: Collection[str] | None) -> Iterator[Parsed]:
    """The rows of a work item, decoded as the dataset's features say."""
    import tensorflow_datasets as tfds

    features = _describe(posixpath.dirname(item.source)).features
    wanted = tfds.features.FeaturesDict(
        {
            name: feature
            for name, feature in features.items()
            if (name in columns if columns is not None else not _holds_image(feature))
        }
    )
    records = _RECORDS[dict(item.options)["file_format"]]
    for record in records(item.source, item.start, item.stop):
        if record is None:
            yield None, "damaged record: the data does not match its checksum"
            continue
        try:
            yield _plain(wanted.deserialize_example_np(record)), None
        except Exception as e:  # TFDS raises whatever its parsers, numpy and image decoders raise
            yield None, f"undecodable example: {type(e).__name__}: {e}"


# --- the description of a dataset


def _find(name: str, data_dir: str) -> str:
    """The directory of a dataset: data_dir/name[/config]/version, the newest version unless one is named."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(f"{name!r} does not name a TFDS dataset: write name, name/config or name/config:1.0.0")
    dataset, config, version = match.groups()
    root = data_dir if "://" in data_dir and not data_dir.startswith("file:") else strip_protocol(data_dir)
    directory = storage.join(root, dataset)
    if not (names := storage.list_names(directory)):
        held = ", ".join(n for n in storage.list_names(root) if not n.startswith(".")) or "nothing"
        raise InputError(
            f"there is no TFDS dataset {dataset!r} in {root}, which holds {held}; prepare it there with TFDS first"
            " (nothing is downloaded here)"
        )
    configs = [n for n in names if not n.startswith(".") and not _VERSION.fullmatch(n)]
    if config is None and not any(map(_VERSION.fullmatch, names)):
        if len(configs) > 1:
            raise InputError(f"{dataset} has the configs {', '.join(configs)}; name one, as {dataset}/{configs[0]}")
        config = configs[0] if configs else None
    if config is not None:
        if config not in configs:
            raise InputError(f"{directory} has no config {config!r}; it holds {', '.join(names)}")
        directory = storage.join(directory, config)
    versions = sorted(filter(_VERSION.fullmatch, storage.list_names(directory)), key=_version_number)
    if not versions or (version is not None and version not in versions):
        wanted, found = f"version {version}" if version else "version", ", ".join(versions) or "none"
        raise InputError(f"{directory} holds no {wanted} of a TFDS dataset; it has {found}")
    return storage.join(directory, version or versions[-1])


def _version_number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _describe(directory: str) -> Any:
    """TFDS's own DatasetInfo, restored from a copy of the small files that lie beside the data."""
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory(prefix="penstock-") as copy:
        for name in storage.list_names(directory):
            if name.endswith(_DESCRIPTIONS):
                (Path(copy) / name).write_bytes(storage.read_bytes(storage.join(directory, name)))
        try:
            path = Path(copy) / "features.json"
            path.write_text(json.dumps(_without_foreign_code(json.loads(path.read_text()))))
            return tfds.builder_from_directory(copy).info
        except InputError as e:
            raise InputError(f"{directory} cannot be used: {e}") from e
        except Exception as e:
            raise InputError(f"{directory} is not a prepared TFDS dataset: {type(e).__name__}: {e}") from e


def _without_foreign_code(description: dict[str, Any]) -> dict[str, Any]:
    """The description of the features, less those that need TensorFlow; an error if it names other code."""
    features = description.get("featuresDict", {}).get("features", {})
    for name in [n for n, f in features.items() if any(c.startswith(_NEED_TENSORFLOW) for c in _classes(f))]:
        del features[name]
    for name in _classes(description):
        if not name.startswith(_OWN_FEATURES):
            raise InputError(f"its features.json names the class {name}, and code that data names is not run")
        if name.startswith(_NEED_TENSORFLOW):
            raise InputError(f"its features are a {name}, which TFDS reads with TensorFlow alone")
    return description


def _classes(description: Any) -> Iterator[str]:
    """The Python classes that a description names, in its present and its older form."""
    if isinstance(description, list):
        for inner in description:
            yield from _classes(inner)
    elif isinstance(description, dict):
        for key, inner in description.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(inner, str):
                yield inner
            elif key in ("json", "content") and isinstance(inner, str):
                yield from _classes(json.loads(inner))
            else:
                yield from _classes(inner)


def _pieces(info: Any, name: str, split: str | None) -> list[_Piece]:
    """What a split means."""
    splits = ", ".join(sorted(info.splits))
    if split is None:
        raise InputError(f"say which split of {name} is meant; it has {splits}")
    try:
        instructions = info.splits[split].file_instructions
    except Exception as e:
        raise InputError(f"{name} has no split {split!r}; it has {splits} ({str(e).splitlines()[0]})") from e
    pieces = [
        _Piece(posixpath.basename(i.filename), i.skip, i.skip + i.take, i.examples_in_shard)
        for i in instructions
        if i.take
    ]
    if not pieces:
        raise InputError(f"the split {split!r} of {name} holds no rows")
    for piece, following in pairwise(sorted(pieces)):
        if piece.file == following.file and following.first < piece.stop:
            raise InputError(f"the split {split!r} of {name} names row {following.first} of {piece.file} twice")
    return pieces


# --- features and values


def _arrow_type(feature: Any) -> pa.DataType:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Dataset):
        return pa.list_(_arrow_type(feature.feature))
    if isinstance(feature, tfds.features.FeaturesDict):
        return pa.struct([(name, _arrow_type(feature[name])) for name in sorted(feature)])
    return _arrow_type_of_tensors(feature.get_tensor_info())


def _arrow_type_of_tensors(info: Any) -> pa.DataType:
    if isinstance(info, dict):
        return pa.struct([(name, _arrow_type_of_tensors(info[name])) for name in sorted(info)])
    dtype = np.dtype(info.np_dtype)
    arrow_type = pa.from_numpy_dtype(dtype) if dtype.kind in "biuf" else pa.string()
    for _ in info.shape:
        arrow_type = pa.list_(arrow_type)
    return arrow_type


def _holds_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return any(map(_holds_image, feature.values()))
    if isinstance(feature, tfds.features.Sequence | tfds.features.Dataset):
        return _holds_image(feature.feature)
    return isinstance(feature, tfds.features.Image)


def _plain(value: Any) -> Any:
    """An example as Python values: TFDS gives arrays, numpy scalars, bytes, and datasets inside of datasets."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, str | bytes | bool | int | float):
        return text_if_utf8(value)
    if hasattr(value, "tolist"):
        return text_if_utf8(value.tolist())
    return [_plain(inner) for inner in value]


def _parquet_records(url: str, start: int, stop: int) -> Iterator[bytes | None]:
    """TFDS's own use of Parquet: one column of serialized examples."""
    for batch in read_batches(url, start, stop, ["data"]):
        yield from batch.column(0).to_pylist()


_RECORDS: dict[str, Callable[[str, int, int], Iterator[bytes | None]]] = {
    "array_record": read_array_records,
    "parquet": _parquet_records,
    "tfrecord": read_tfrecords,
}
