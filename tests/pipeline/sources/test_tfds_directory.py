"""Prepared datasets in each of the formats, against what TFDS itself would give, without TensorFlow or a network."""

import functools
import importlib.abc
import importlib.machinery
import io
import json
import random
import shutil
import socket
import struct
import sys
import uuid

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.sources import open_source, read_rows
from pipeline.sources.tfrecord import masked_crc32c

from .reading import checked_plan, read, values_and_errors

pytestmark = pytest.mark.filterwarnings(
    "ignore:label\\(\\) is deprecated:DeprecationWarning"  # TFDS asks protobuf in the old way
)

FORMATS = ["array_record", "parquet", "tfrecord"]
TRAIN_ROWS, TEST_ROWS = 237, 40


def example(number: int) -> dict:
    picture = io.BytesIO()
    Image.new("RGB", (2, 1), (number % 256, 0, 255)).save(picture, "PNG")
    picture.seek(0)
    return {
        "number": number,
        "text": f"naïve {number}\x00",
        "raw": b"\xff\x00" if number % 2 else b"plain",
        "label": number % 2,
        "scores": np.full((2, 2), number, np.float32),
        "words": ["a", "é"] * (number % 3),
        "spans": [{"at": n, "word": f"w{n}"} for n in range(number % 3)],
        "inner": {"flag": number % 2 == 0, "tags": ["x"]},
        "turns": [{"say": "hi"}] * (number % 2),
        "picture": picture,
    }


def expected(number: int) -> dict:
    return {
        **{name: value for name, value in example(number).items() if name != "picture"},
        "raw": b"\xff\x00" if number % 2 else "plain",
        "scores": [[float(number)] * 2] * 2,
        "spans": {"at": list(range(number % 3)), "word": [f"w{n}" for n in range(number % 3)]},
    }


def builder_class():
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """237 and 40 rows with features of many kinds."""

        VERSION = tfds.core.Version("1.2.0")
        code_path = None  # to look for it, TFDS would need importlib_resources

        def _info(self):
            f = tfds.features
            features = {
                "number": np.int64,
                "text": f.Text(),
                "raw": np.str_,
                "label": f.ClassLabel(names=["no", "yes"]),
                "scores": f.Tensor(shape=(2, 2), dtype=np.float32),
                "words": f.Sequence(f.Text()),
                "spans": f.Sequence({"at": np.int32, "word": f.Text()}),
                "inner": {"flag": np.bool_, "tags": f.Sequence(f.Text())},
                "turns": f.Dataset({"say": f.Text()}),
                "picture": f.Image(shape=(None, None, 3)),
            }
            return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, TRAIN_ROWS),
                "test": self._generate_examples(1000, TEST_ROWS),
            }

        def _generate_examples(self, first, rows):
            for number in range(first, first + rows):
                yield number, example(number)

    return Tiny


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """A data_dir for each format; TFDS writes the first two, and the third is the first in other frames."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    settings = tfds.download.DownloadConfig(num_shards=3)  # TFDS loses rows of Parquet files of more than 100
    for file_format in ("array_record", "parquet"):
        builder = builder_class()(data_dir=root / file_format, file_format=file_format)
        builder.download_and_prepare(download_config=settings)
    as_tfrecord(root / "array_record" / "tiny" / "1.2.0", root / "tfrecord" / "tiny" / "1.2.0")
    return {name: str(root / name) for name in FORMATS}


def as_tfrecord(prepared, directory):
    from array_record.python.array_record_module import ArrayRecordReader

    directory.mkdir(parents=True)
    for path in prepared.iterdir():
        if "array_record-" not in path.name:
            shutil.copy(path, directory)
            continue
        with open(directory / path.name.replace("array_record", "tfrecord"), "wb") as f:
            for record in ArrayRecordReader(str(path)).read_all():
                length = struct.pack("<Q", len(record))
                f.write(length + struct.pack("<I", masked_crc32c(length)))
                f.write(record + struct.pack("<I", masked_crc32c(record)))
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def dataset(data_dirs, file_format, split="train", name="tiny"):
    return open_source(tfds=name, split=split, data_dir=data_dirs[file_format])


@functools.cache
def numbers(data_dir, split, shard_rows=1000):
    source = open_source(tfds="tiny", split=split, data_dir=data_dir)
    return [row.values["number"] for row in read(checked_plan(source, shard_rows), {"number"})]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("shard_rows", [17, 1000])
def test_every_example_comes_back_as_python_values(data_dirs, file_format, shard_rows):
    rows = read(checked_plan(dataset(data_dirs, file_format), shard_rows))
    found = sorted((row.values for row in rows if row.values), key=lambda values: values["number"])
    assert found == [expected(number) for number in range(TRAIN_ROWS)]
    assert type(found[0]["number"]) is int
    assert type(found[0]["inner"]["flag"]) is bool
    assert type(found[0]["scores"][0][0]) is float


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("split", "train_rows", "test_rows"),
    [
        ("train", slice(None), slice(0)),
        ("train[:10%]", slice(24), slice(0)),
        ("train[100:200]", slice(100, 200), slice(0)),
        ("train[50%:]", slice(118, None), slice(0)),
        ("train[-5:]", slice(-5, None), slice(0)),
        ("train+test", slice(None), slice(None)),
        ("train[:10%]+test", slice(24), slice(None)),
        ("train[3:4]+train[200:]+test[:1]", [3, *range(200, TRAIN_ROWS)], slice(1)),
    ],
)
def test_a_split_is_exactly_the_rows_that_tfds_means(data_dirs, file_format, split, train_rows, test_rows):
    train = numbers(data_dirs[file_format], "train")
    test = numbers(data_dirs[file_format], "test")
    assert sorted(train) == list(range(TRAIN_ROWS))
    assert sorted(test) == list(range(1000, 1000 + TEST_ROWS))
    chosen = train[train_rows] if isinstance(train_rows, slice) else [train[row] for row in train_rows]
    assert numbers(data_dirs[file_format], split, shard_rows=23) == chosen + test[test_rows]


def test_slices_are_those_of_tfds_itself(data_dirs):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(f"{data_dirs['array_record']}/tiny/1.2.0")
    for split in ("train[:10%]", "train[33%:77%]", "train[:-1]", "test[7:]"):
        theirs = [example["number"] for example in builder.as_data_source(split)]
        assert numbers(data_dirs["array_record"], split) == theirs


@pytest.mark.parametrize("file_format", FORMATS)
def test_any_store_will_do(data_dirs, file_format):
    memory = fsspec.filesystem("memory")
    url = f"memory:///{uuid.uuid4().hex}"
    memory.put(data_dirs[file_format] + "/tiny", f"{url}/tiny", recursive=True)
    source = open_source(tfds="tiny:1.2.0", split="train[:50]", data_dir=url)
    items = checked_plan(source, 20)
    assert all(item.source.startswith(url) for item in items)
    assert [row.values["number"] for row in read(items, {"number"})] == numbers(data_dirs[file_format], "train[:50]")
    names = [fact.url.removeprefix(f"{url}/tiny/1.2.0/") for fact in source.files()]
    assert names == ["features.json", *dict.fromkeys(item.source_file for item in items)]


def test_columns_are_declared_and_values_fit_them(data_dirs):
    source = dataset(data_dirs, "parquet")
    columns = source.columns()
    lists = pa.list_
    assert columns == {
        "number": pa.int64(),
        "text": pa.string(),
        "raw": pa.string(),
        "label": pa.int64(),
        "scores": lists(lists(pa.float32())),
        "words": lists(pa.string()),
        "spans": pa.struct([("at", lists(pa.int32())), ("word", lists(pa.string()))]),
        "inner": pa.struct([("flag", pa.bool_()), ("tags", lists(pa.string()))]),
        "turns": lists(pa.struct([("say", pa.string())])),
        "picture": lists(lists(lists(pa.uint8()))),
    }
    rows = list(read_rows(next(iter(source.work_items(5))), set(columns)))
    assert list(columns) == list(rows[0].values) == sorted(columns)
    assert list(rows[0].values["inner"]) == ["flag", "tags"]
    assert list(rows[0].values["spans"]) == ["at", "word"]
    for name in set(columns) - {"raw"}:  # which is not always text
        pa.array([row.values[name] for row in rows], columns[name])


def test_images_are_decoded_only_when_they_are_asked_for(data_dirs):
    item = next(iter(dataset(data_dirs, "array_record").work_items(1)))
    ((everything,), (pictured,)) = list(read_rows(item)), list(read_rows(item, {"picture", "number", "absent"}))
    assert "picture" not in everything.values
    number = pictured.values["number"]
    assert pictured.values == {"number": number, "picture": [[[number % 256, 0, 255]] * 2]}
    assert [row.values for row in read_rows(item, set())] == [{}]


class Trap(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A TensorFlow that seems to be installed and must not be imported."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] == "tensorflow" else None

    def exec_module(self, module):
        raise AssertionError(f"{module.__name__} was imported")


@pytest.mark.parametrize("file_format", FORMATS)
def test_neither_tensorflow_nor_a_network_is_touched(data_dirs, file_format, monkeypatch):
    def no_network(*arguments):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(sys, "meta_path", [Trap(), *sys.meta_path])
    monkeypatch.setattr(socket.socket, "connect", no_network)
    source = dataset(data_dirs, file_format, "train[:3]")
    columns = set(source.columns())
    assert [row.error for row in read(checked_plan(source, 2), columns)] == [None] * 3
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"tfds": "huge"}, r"there is no TFDS dataset 'huge' in .*, which holds .*tiny; .*nothing is downloaded here"),
        ({"tfds": "tiny:9.9.9"}, r"holds no version 9\.9\.9 of a TFDS dataset; it has 1\.2\.0"),
        ({"tfds": "tiny/odd"}, r"has no config 'odd'; it holds 1\.2\.0"),
        ({"tfds": "downloads"}, "downloads/extracted holds no version of a TFDS dataset; it has none"),
        ({"tfds": "../tiny"}, "does not name a TFDS dataset"),
        ({"tfds": "tiny:latest"}, "does not name a TFDS dataset"),
        ({"split": None}, "say which split of tiny is meant; it has test, train"),
        ({"split": "dev"}, "has no split 'dev'; it has test, train"),
        ({"split": "train[:10"}, r"has no split 'train\[:10'; it has test, train"),
        ({"split": "train[0:1000]"}, r"has no split 'train\[0:1000\]'.* incompatible with 237 examples"),
        ({"split": "train[:0]"}, "holds no rows"),
        ({"split": "train[:60%]+train[40%:]"}, r"names row \d+ of tiny-train\.parquet-0000\d-of-00003 twice"),
        ({"data_dir": "/nowhere"}, "there is no TFDS dataset 'tiny' in /nowhere, which holds nothing"),
    ],
)
def test_what_is_not_there_is_named_along_with_what_is(data_dirs, arguments, complaint):
    where = {"tfds": "tiny", "split": "train", "data_dir": data_dirs["parquet"], **arguments}
    with pytest.raises(InputError, match=complaint):
        open_source(**where)


def test_the_newest_version_and_the_only_config_are_meant_unless_named(data_dirs, tmp_path):
    prepared = f"{data_dirs['parquet']}/tiny/1.2.0"
    for place in ("tiny/main/1.2.0", "tiny/main/1.10.0", "two/a/1.0.0", "two/b/1.0.0"):
        shutil.copytree(prepared, tmp_path / place)

    def directory(name):
        return open_source(tfds=name, split="test", data_dir=str(tmp_path)).files()[0].url.rsplit("/", 1)[0]

    assert directory("tiny") == directory("tiny/main") == str(tmp_path / "tiny/main/1.10.0")
    assert directory("tiny:1.2.0") == directory("tiny/main:1.2.0") == str(tmp_path / "tiny/main/1.2.0")
    assert directory("two/b") == str(tmp_path / "two/b/1.0.0")
    with pytest.raises(InputError, match="two has the configs a, b; name one, as two/a"):
        directory("two")


def copied(data_dirs, file_format, tmp_path):
    shutil.copytree(data_dirs[file_format], tmp_path / "copy")
    return tmp_path / "copy" / "tiny" / "1.2.0"


FOREIGN = {"pythonClassName": "antigravity.Feature", "text": {}}
TEXT = "tensorflow_datasets.core.features.text_feature.Text"


@pytest.mark.parametrize(
    "feature",
    [
        FOREIGN,
        {"type": "antigravity.Feature", "content": {}},
        {"pythonClassName": TEXT, "jsonFeature": {"json": json.dumps({"inner": [FOREIGN]})}},
        {"type": TEXT, "proto_cls": "tensorflow_datasets.Feature", "content": json.dumps(FOREIGN)},
    ],
)
def test_code_that_a_dataset_names_is_not_imported(data_dirs, tmp_path, feature):
    directory = copied(data_dirs, "parquet", tmp_path)
    features = json.loads((directory / "features.json").read_text())
    features["featuresDict"]["features"]["bad"] = feature
    (directory / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"names the class antigravity\.Feature"):
        open_source(tfds="tiny", split="train", data_dir=str(tmp_path / "copy"))
    assert "antigravity" not in sys.modules


def test_features_that_need_tensorflow_are_left_out(data_dirs, tmp_path):
    directory = copied(data_dirs, "array_record", tmp_path)
    features = json.loads((directory / "features.json").read_text())
    features["featuresDict"]["features"]["words"] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "none", "sampleRate": "16000"},
    }
    (directory / "features.json").write_text(json.dumps(features))
    source = open_source(tfds="tiny", split="test", data_dir=str(tmp_path / "copy"))
    assert set(source.columns()) == set(example(0)) - {"words"}
    (first, *_) = read(checked_plan(source, 10))
    assert set(first.values) == set(example(0)) - {"words", "picture"}


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_description_that_is_missing_or_broken_is_an_error(data_dirs, tmp_path, name):
    directory = copied(data_dirs, "parquet", tmp_path)
    for damage in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        damage(directory / name)
        with pytest.raises(InputError, match=f"{directory} is not a prepared TFDS dataset"):
            open_source(tfds="tiny", split="train", data_dir=str(tmp_path / "copy"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_data_file_that_is_gone_or_shorter_is_an_error(data_dirs, tmp_path, file_format):
    directory = copied(data_dirs, file_format, tmp_path)
    source = open_source(tfds="tiny", split="train", data_dir=str(tmp_path / "copy"))
    first, second, _ = source.work_items(1000)
    short = directory / f"tiny-test.{file_format}-00000-of-00003"
    (directory / first.source_file).write_bytes(short.read_bytes())
    with pytest.raises(InputError, match=r"has changed since the work plan was made: it has \d+ "):
        list(read_rows(first))
    (directory / second.source_file).unlink()
    for touch in (lambda: list(read_rows(second)), source.files):
        with pytest.raises(InputError, match=f"there is no file .*{second.source_file}"):
            touch()


def test_a_parquet_file_that_tfds_wrote_incompletely_is_an_error_of_the_plan(data_dirs, tmp_path):
    directory = copied(data_dirs, "parquet", tmp_path)
    first = min(directory.glob("tiny-train.parquet-*"))
    rows = pq.read_metadata(first).num_rows
    pq.write_table(pq.read_table(first).slice(0, 40), first)
    source = open_source(tfds="tiny", split="train", data_dir=str(tmp_path / "copy"))
    with pytest.raises(InputError, match=f"{first} has 40 rows where its dataset counts {rows}; TFDS 4.9.10 loses"):
        list(source.work_items(1000))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_damaged_record_is_one_bad_row(data_dirs, tmp_path, file_format):
    directory = copied(data_dirs, file_format, tmp_path)
    item = next(iter(open_source(tfds="tiny", split="train", data_dir=str(tmp_path / "copy")).work_items(1000)))
    whole = values_and_errors(list(read_rows(item)))
    path = directory / item.source_file
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    damaged = values_and_errors(list(read_rows(item)))
    assert [error for _, error in damaged if error] == ["damaged record: the data does not match its checksum"]
    assert sum(before != after for before, after in zip(whole, damaged, strict=True)) == 1


def test_an_example_that_does_not_fit_the_features_is_a_bad_row(data_dirs, tmp_path):
    directory = copied(data_dirs, "tfrecord", tmp_path)
    item = next(iter(open_source(tfds="tiny", split="train", data_dir=str(tmp_path / "copy")).work_items(1000)))
    data = random.Random(0).randbytes(50)
    length = struct.pack("<Q", len(data))
    record = length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
    path = directory / item.source_file
    path.write_bytes(record + path.read_bytes())
    first, second, *_ = read_rows(item)
    assert first.error is not None
    assert first.error.startswith("undecodable example: DecodeError")
    assert second.error is None
