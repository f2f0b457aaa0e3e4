"""gs:// and s3:// through the real gcsfs and s3fs, spoken to by doubles over HTTP that fail on demand."""

import functools
import gzip
import json
import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import InputError, MissingFile, OutputError
from pipeline.manifest import Manifest
from pipeline.sources import open_source, read_rows
from pipeline.storage import object_file, retrying
from pipeline.storage.drivers import resolve_output
from schemas.manifest import Summary
from tests.stores import faults as fault
from tests.stores.faults import Faults
from tests.stores.objects import Objects
from tests.stores.serving import BUCKET, reached

from .example_output import contents, plan_example, run_example


@pytest.fixture(scope="module", params=["gcs", "s3"])
def served(request, tmp_path_factory):
    """One server and one client for all tests: an S3 client takes half a second to make."""
    with reached(request.param, tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(served, tmp_path):
    """Empty, and nothing goes wrong."""
    served.objects, served.faults, served.denied = Objects(tmp_path / "store"), Faults(), {}
    served.objects.make_bucket(BUCKET)
    served.log.clear()
    return served


@pytest.fixture
def base(store):
    return f"{store.scheme}://{BUCKET}"


@pytest.fixture
def put_method(store):
    """How the store is asked to create an object."""
    return {"gs": "POST", "s3": "PUT"}[store.scheme]


# --- publishing


def test_a_job_runs_and_finishes_in_an_object_store(tmp_path, store, base):
    storage.check_writable(f"{base}/out")
    plan = plan_example(tmp_path, f"{base}/out")
    run_example(f"{base}/out", plan, failed=frozenset({3})).finalise()
    names = ["_SUCCESS", "_errors", "_manifest", "_plan.json", "_summary.json"]
    assert storage.list_names(f"{base}/out") == names + [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    before = list(store.objects.puts)
    again = plan_example(tmp_path, f"{base}/out")
    assert Manifest(f"{base}/out", again).todo() == []
    Manifest(f"{base}/out", again).finalise()
    assert store.objects.puts == before
    assert len(before) == len(set(before))


def test_one_of_many_puts_wins(base):
    barrier = threading.Barrier(8)

    def publish(i):
        barrier.wait()
        return storage.publish_if_absent(f"{base}/a", bytes([i]))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(publish, range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(f"{base}/a") == bytes([won.index(True)])


def in_parts(url, monkeypatch):
    """Upload in requests of 5 MiB from now on, as only much larger files are."""
    fs, _ = resolve_output(url)
    monkeypatch.setattr(fs, "put_file", functools.partial(fs.put_file, chunksize=5 * 2**20))


def test_large_files_are_created_once_too(store, base, tmp_path, monkeypatch):
    """In several requests: a resumable upload, a multipart upload."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(os.urandom(11 * 2**20))
    theirs.write_bytes(os.urandom(11 * 2**20))
    in_parts(base, monkeypatch)
    assert storage.publish_if_absent(f"{base}/large", ours)
    assert sum("upload_id=" in url or "partNumber=" in url for _, url in store.log) == 3
    assert not storage.publish_if_absent(f"{base}/large", theirs)
    assert storage.publish_if_absent(f"{base}/large", ours)  # what is there is just that
    with storage.open_input(f"{base}/large") as file:
        assert file.read() == ours.read_bytes()


@pytest.mark.parametrize("size_bytes", [10, 6 * 2**20], ids=["at once", "resumable"])
@pytest.mark.parametrize("kind", [fault.ERROR, fault.ERROR_AFTER, fault.DROPPED, fault.LOST, fault.CUT, fault.SHORT])
def test_a_put_that_took_effect_though_its_reply_did_not_come_is_ours(store, base, tmp_path, kind, size_bytes):
    """The driver asks again by itself and finds the name taken: by us."""
    data = tmp_path / "data"
    data.write_bytes(os.urandom(size_bytes))
    for method in ("POST", "PUT"):
        store.faults.ask(kind, method, "name=" if size_bytes > 10 and store.scheme == "gs" else "/")
        store.faults.ask(kind, method, "upload_id=" if store.scheme == "gs" else "/")
    assert storage.publish_if_absent(f"{base}/a", data)
    assert store.objects.puts == [(BUCKET, "a")]
    with storage.open_input(f"{base}/a") as file:
        assert file.read() == data.read_bytes()


@pytest.mark.parametrize("kind", [fault.CUT, fault.SHORT])
def test_a_name_that_is_taken_is_so_even_if_the_refusal_came_in_half(store, base, put_method, kind):
    """Nor does every store that speaks S3 say which condition was not met."""
    storage.publish_if_absent(f"{base}/a", b"first")
    for _ in range(10):
        store.faults.ask(kind, put_method, "/")
    assert not storage.publish_if_absent(f"{base}/a", b"other")
    assert storage.publish_if_absent(f"{base}/a", b"first")


@pytest.mark.parametrize("kind", [fault.LOST, fault.ERROR_AFTER])
def test_a_lost_reply_to_the_loser_does_not_make_it_win(store, base, put_method, kind):
    storage.publish_if_absent(f"{base}/a", b"first")
    store.faults.ask(kind, put_method, "/")
    assert not storage.publish_if_absent(f"{base}/a", b"other")
    assert storage.read_bytes(f"{base}/a") == b"first"


@pytest.mark.parametrize("kind", [fault.LOST, fault.ERROR_AFTER])
def test_a_multipart_upload_that_was_completed_though_the_reply_was_lost_is_ours(tmp_path, kind, monkeypatch):
    with reached("s3", tmp_path / "store") as store:
        (tmp_path / "data").write_bytes(os.urandom(11 * 2**20))
        in_parts("s3://bucket", monkeypatch)
        store.faults.ask(kind, "POST", "uploadId=")
        assert storage.publish_if_absent("s3://bucket/a", tmp_path / "data")
        assert store.objects.puts == [(BUCKET, "a")]
        assert store.open_uploads == 0


def test_what_a_chunk_left_over_is_sent_again(tmp_path):
    """GCS may keep only the beginning of a chunk: 308 says how much."""
    with reached("gcs", tmp_path / "store") as store:
        (tmp_path / "data").write_bytes(os.urandom(6 * 2**20))
        store.keeps_bytes = 3 * 2**18
        assert storage.publish_if_absent("gs://bucket/a", tmp_path / "data")
        assert storage.read_bytes("gs://bucket/a") == (tmp_path / "data").read_bytes()


def test_an_upload_that_the_store_did_not_confirm_is_begun_anew(tmp_path):
    """308 without a Range to the last chunk: nothing was kept. gcsfs takes it for success."""
    with reached("gcs", tmp_path / "store") as store:
        (tmp_path / "data").write_bytes(os.urandom(6 * 2**20))
        store.keeps_bytes = 0
        assert storage.publish_if_absent("gs://bucket/a", tmp_path / "data")
        assert storage.read_bytes("gs://bucket/a") == (tmp_path / "data").read_bytes()


def test_replacing_is_repeated_too_and_spares_what_is_the_same(store, base, put_method):
    for kind in (fault.ERROR, fault.LOST, fault.DROPPED):
        store.faults.ask(kind, put_method, "/")
        storage.publish_over(f"{base}/a", kind.encode())
        assert storage.read_bytes(f"{base}/a") == kind.encode()
    before = list(store.objects.puts)
    storage.publish_over(f"{base}/a", fault.DROPPED.encode())
    assert store.objects.puts == before


def test_a_probe_whose_removal_was_not_answered_is_removed(store, base):
    store.faults.ask(fault.LOST, "DELETE", "/")
    storage.check_writable(f"{base}/out")
    assert storage.list_names(f"{base}/out") == []


def test_a_store_that_ignores_conditions_is_refused(tmp_path):
    with reached("s3", tmp_path / "store") as store:
        store.ignores_conditions = True
        with pytest.raises(OutputError, match=r"s3://bucket/out is in a store that ignores conditional writes"):
            storage.check_writable("s3://bucket/out")


# --- reading


def test_objects_are_found_like_files(store, base):
    for name in ("a.jsonl", "b.jsonl", "_c.jsonl", "deep/d.jsonl", "deep/_e", "x[1].csv"):
        storage.publish_if_absent(f"{base}/in/{name}", name.encode())

    def found(pattern):
        return [url.removeprefix(f"{base}/in/") for url in storage.expand(f"{base}/{pattern}")]

    assert found("in") == ["a.jsonl", "b.jsonl", "deep/d.jsonl", "x[1].csv"]
    assert found("in/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found("in/**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/d.jsonl"]
    assert found("in/x[1].csv") == ["x[1].csv"]
    assert storage.exists(f"{base}/in")
    assert not storage.exists(f"{base}/in/missing")
    with pytest.raises(MissingFile, match="there is no file"):
        storage.open_input(f"{base}/in/missing")
    with pytest.raises(InputError, match=r"no input file matches .*x\.csv; .*/in holds _c\.jsonl, a\.jsonl"):
        storage.expand(f"{base}/in/x.csv")
    facts = storage.stat(f"{base}/in/a.jsonl")
    storage.publish_over(f"{base}/in/a.jsonl", b"another")
    assert facts.etag
    assert facts.etag != storage.stat(f"{base}/in/a.jsonl").etag


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in", ["d=1/a.jsonl", "d=1/e/b.jsonl", "d=2/a.jsonl", "top.jsonl"]),
        ("in/*.jsonl", ["top.jsonl"]),
        pytest.param("in/*/*.jsonl", ["d=1/a.jsonl", "d=2/a.jsonl"], marks=pytest.mark.slow),
        ("in/d=[13]/?.jsonl", ["d=1/a.jsonl"]),
        ("in/d*/**/b.jsonl", ["d=1/e/b.jsonl"]),
        pytest.param("in/*/e/*", ["d=1/e/b.jsonl"], marks=pytest.mark.slow),
    ],
)
def test_no_file_is_left_out_because_a_listing_failed(store, base, pattern, names) -> None:
    """Whichever request it is: s3fs takes a directory that cannot be listed for an empty one."""
    for name in ("d=1/a.jsonl", "d=1/e/b.jsonl", "d=2/a.jsonl", "top.jsonl"):
        store.objects.put(BUCKET, f"in/{name}", b"{}", if_absent=False)
    wanted = [f"{base}/in/{name}" for name in names]
    assert storage.expand(f"{base}/{pattern}") == wanted
    for number in range(len(store.log)):
        store.faults = _Nth(number)
        assert storage.expand(f"{base}/{pattern}") == wanted


class _Nth(Faults):
    """One request fails, counted from now."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    def status(self, method: str, url: str) -> int:
        return 503

    def _draw(self, method: str, url: str) -> str | None:
        self._left -= 1
        return fault.ERROR if self._left == -1 else None


def test_long_listings_come_in_pages(store, base, monkeypatch):
    monkeypatch.setattr("tests.stores.objects.PAGE_OBJECTS", 7)
    names = [f"{i:03}.json" for i in range(20)]
    for name in names:
        store.objects.put(BUCKET, f"in/{name}", b"", if_absent=False)
    store.faults.ask(fault.SHORT, "GET", "prefix=")
    store.faults.ask(fault.CUT, "GET", "prefix=")
    assert storage.list_names(f"{base}/in") == names


def test_any_part_of_an_object_reads_as_of_a_file(store, base, tmp_path, monkeypatch):
    monkeypatch.setattr(object_file, "SHORTEST_BYTES", 100)
    monkeypatch.setattr(object_file, "LONGEST_BYTES", 400)
    monkeypatch.setattr(object_file, "REQUEST_BYTES", 300)
    data = os.urandom(5000)
    (tmp_path / "data").write_bytes(data)
    storage.publish_if_absent(f"{base}/a", data)
    draw = random.Random(3)
    with storage.open_input(f"{base}/a") as there, open(tmp_path / "data", "rb") as here:
        for _ in range(25):
            if draw.random() < 0.4:
                offset, whence = draw.choice([(draw.randrange(6000), 0), (-draw.randrange(5000), 2), (0, 1)])
                assert there.seek(offset, whence) == here.seek(offset, whence)
            size = draw.choice([0, 1, 50, 120, 900, -1])
            assert there.read(size) == here.read(size)
            assert there.tell() == here.tell()
    with pytest.raises(ValueError, match="closed"):
        there.read(1)


def test_reading_on_takes_few_requests_and_looking_here_and_there_few_bytes(store, base):
    data = os.urandom(20 * 2**20)
    store.objects.put(BUCKET, "a", data, if_absent=False)
    with storage.open_input(f"{base}/a") as file:
        before = len(store.log)
        while file.read(2**16):
            pass
        assert len(store.log) - before <= 8


@pytest.mark.parametrize("kind", [fault.ERROR, fault.DROPPED, fault.CUT, fault.SHORT, fault.SLOW])
def test_half_a_body_is_never_taken_for_data(store, base, kind):
    data = os.urandom(200_000)
    storage.publish_if_absent(f"{base}/a", data)
    for _ in range(3):
        store.faults.ask(kind, "GET", "/a")
    assert storage.read_bytes(f"{base}/a") == data
    assert store.faults.seen[kind] == 3 or kind == fault.SLOW


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(store, base):
    data = os.urandom(20 * 2**20)
    store.objects.put(BUCKET, "a", data, if_absent=False)
    with storage.open_input(f"{base}/a") as file:
        assert file.read(10) == data[:10]
        store.objects.put(BUCKET, "a", data[::-1], if_absent=False)
        with pytest.raises(InputError, match=r"/a was replaced or removed while it was read; run again"):
            file.read()


QUESTIONS = [{"question": f"q{i}", "answer": i} for i in range(50)]


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl.gz",
        "a.csv",
        "a.parquet",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("a.jsonl", "a.txt")),
    ],
)
def test_every_kind_of_file_is_read_with_one_request_in_five_failing(store, base, tmp_path, name):
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(QUESTIONS), tmp_path / name, row_group_size=10)
        data = (tmp_path / name).read_bytes()
    elif name.endswith(".csv"):
        data = b"question,answer\n" + b"".join(f"q{i},{i}\n".encode() for i in range(50))
    else:
        data = gzip.compress(lines) if name.endswith(".gz") else lines
    (tmp_path / name).write_bytes(data)
    store.objects.put(BUCKET, f"in/{name}", data, if_absent=False)
    store.faults.rate, store.faults.slow_seconds = 0.2, 0.01

    def rows(path):
        return [row.values for item in open_source(path=path).work_items(7) for row in read_rows(item)]

    there = rows(f"{base}/in/{name}")
    assert len(there) == 50
    assert there == rows(str(tmp_path / name))
    assert store.faults.seen.total() > store.faults.seen["requests"]


def test_a_job_whose_requests_fail_gives_the_rows_of_one_whose_do_not(tmp_path, store, base):
    here = tmp_path / "out"
    run_example(str(here), plan_example(tmp_path, str(here), rows=100)).finalise()
    store.faults = Faults(rate=0.2, seed=5, slow_seconds=0.01)
    there = f"{base}/out"
    storage.check_writable(there)
    summary = run_example(there, plan_example(tmp_path, there, rows=100)).finalise()
    parts = [name for name in storage.list_names(there) if name.startswith("part-")]
    assert len(parts) == 10
    for name in parts:
        assert storage.read_bytes(f"{there}/{name}") == contents(here)[name][0]
    assert Summary.from_json(storage.read_bytes(f"{there}/_summary.json")) == summary
    assert len({kind for kind in fault.KINDS if store.faults.seen[kind]}) >= 5


# --- refusals


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_said_at_once_with_the_permission_that_is_missing(store, base, put_method, status):
    storage.publish_if_absent(f"{base}/a", b"")
    before = len(store.log)
    store.denied = dict.fromkeys(("GET", "HEAD", "POST", "PUT"), status)
    permission = {"gs": r"storage\.objects\.create", "s3": "s3:PutObject"}[store.scheme]
    sign_in = {"gs": "gcloud auth", "s3": "aws configure"}[store.scheme]
    expected = (
        rf"refuses to create .*/b; whoever runs this needs {permission} \(docs/storage" if status == 403 else sign_in
    )
    with pytest.raises(OutputError, match=expected):
        storage.publish_if_absent(f"{base}/b", b"")
    for look in (storage.read_bytes, storage.exists, storage.expand, storage.open_input):
        with pytest.raises(InputError, match=rf"{base} (refuses to read|does not know who asks)"):
            look(f"{base}/a")
    assert len(store.log) - before < 20


def test_a_bucket_that_does_not_exist_is_named(store):
    for attempt in (storage.check_writable, lambda url: storage.publish_over(f"{url}/a", b"")):
        with pytest.raises((OutputError, InputError), match=rf"there is no bucket {store.scheme}://nosuch; create it"):
            attempt(f"{store.scheme}://nosuch/out")
    with pytest.raises(InputError, match=r"there is no bucket|no such bucket"):
        storage.expand(f"{store.scheme}://nosuch/*.jsonl")


def test_a_store_that_stays_away_is_given_up_after_a_bound_and_each_try_is_logged(store, base, caplog):
    storage.publish_if_absent(f"{base}/a", b"data")
    store.faults.rate, store.faults.kinds = 1.0, (fault.ERROR,)
    with (
        caplog.at_level(logging.WARNING, "pipeline.storage"),
        pytest.raises(InputError, match=r"after 6 tries.*goes on"),
    ):
        storage.read_bytes(f"{base}/a")
    said = [record.getMessage() for record in caplog.records if record.name == "pipeline.storage.retrying"]
    assert len(said) == retrying.TRIES - 1
    assert all(text.startswith(f"could not read {base}/a (") and "trying again in" in text for text in said)
    with pytest.raises(OutputError, match=r"cannot create .*/b: still .* after 6 tries"):
        storage.publish_if_absent(f"{base}/b", b"data")


def test_pauses_are_drawn_from_zero_to_a_ceiling_that_doubles(monkeypatch):
    ceilings = []
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 1.0)
    monkeypatch.setattr(retrying.random, "uniform", lambda low, high: ceilings.append((low, high)) or 0.0)
    for attempt in range(1, 9):
        retrying.pause(attempt, ConnectionError(), retrying.Doing("read", "gs://b/a"))
    assert ceilings == [(0, ceiling) for ceiling in (1, 2, 4, 8, 16, 30, 30, 30)]


# --- what others leave behind


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1 half a file"], ids=["empty", "a beginning", "half"])
def test_a_result_file_that_somebody_else_left_half_is_refused(tmp_path, store, base, data):
    plan = plan_example(tmp_path, f"{base}/out")
    store.objects.put(BUCKET, "out/part-00001-of-00003.parquet", data, if_absent=False)
    with pytest.raises(OutputError, match=r"00001-of-00003\.parquet is damaged: .*; delete it and run the job again"):
        Manifest(f"{base}/out", plan).todo()


def test_a_foreign_result_file_is_refused(tmp_path, store, base):
    plan = plan_example(tmp_path, f"{base}/out")
    store.objects.put(BUCKET, "out/part-0.parquet", b"theirs", if_absent=False)
    with pytest.raises(OutputError, match=r"out holds part-0\.parquet, which is not of this job"):
        Manifest(f"{base}/out", plan).todo()


def test_clocks_do_not_matter(tmp_path, store, base, monkeypatch):
    """A worker whose clock is wrong by years commits like any other; only the times shown are off."""
    out = f"{base}/out"
    plan = plan_example(tmp_path, out)
    run_example(out, plan)
    name = "out/part-00001-of-00003.parquet"
    store.objects.delete(BUCKET, name)
    monkeypatch.setattr("tests.stores.objects.time.time_ns", lambda: 1)
    run_example(out, plan).finalise()
    assert Manifest(out, plan).todo() == []
