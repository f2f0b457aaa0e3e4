"""Files that appear whole, once, whoever is killed or races; and inputs found wherever they lie."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import local_files, storage
from pipeline.errors import InputError, OutputError
from pipeline.storage.drivers import forget_stores

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory"])
def base(request, tmp_path):
    """An empty place of each kind."""
    return str(tmp_path / "place") if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


def put(base, *names):
    for name in names:
        storage.publish_if_absent(storage.join(base, name), name.encode())


def python(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


# --- reading


def test_a_directory_means_its_files_without_bookkeeping(base):
    put(base, "b.jsonl", "a.jsonl", "dt=1/c.jsonl", "_plan.json", ".x.partial", "_manifest/0.json", "dt=1/.y")
    assert storage.expand(base) == [storage.join(base, name) for name in ("a.jsonl", "b.jsonl", "dt=1/c.jsonl")]


def test_a_glob_means_what_it_matches(base):
    put(base, "a.jsonl", "b.jsonl", "c.csv", "_b.jsonl", ".b.jsonl", "deep/d.jsonl")

    def matched(pattern):
        return [url.removeprefix(base + "/") for url in storage.expand(storage.join(base, pattern))]

    assert matched("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert matched("**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/d.jsonl"]
    assert matched("_*.jsonl") == ["_b.jsonl"]
    assert matched("[ac].*") == ["a.jsonl", "c.csv"]


def test_one_file_means_itself_even_with_glob_characters_in_its_name(base):
    put(base, "a[1].jsonl", "_hidden.jsonl")
    for name in ("a[1].jsonl", "_hidden.jsonl"):
        assert storage.expand(storage.join(base, name)) == [storage.join(base, name)]


def test_local_files_are_plain_absolute_paths(tmp_path, monkeypatch):
    put(str(tmp_path), "a.jsonl")
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / "a.jsonl")]
    for pattern in ("a.jsonl", "*.jsonl", "./a.jsonl", f"file://{tmp_path}/a.jsonl", str(tmp_path)):
        assert storage.expand(pattern) == expected


def test_a_pattern_that_matches_nothing_says_what_is_there(base):
    put(base, "train.csv", *(f"x{i}" for i in range(9)))
    with pytest.raises(InputError, match=r"no input file matches .*\.jsonl; .* holds train\.csv, x0.*, \.\.\."):
        storage.expand(storage.join(base, "missing", "*.jsonl"))


def test_stat_gives_sizes_and_refuses_what_is_not_there(base):
    put(base, "abc")
    assert storage.stat(storage.join(base, "abc")) == storage.FileFacts(storage.join(base, "abc"), 3, None)
    with pytest.raises(InputError, match=r"no file .*missing"):
        storage.stat(storage.join(base, "missing"))


def test_an_open_file_is_seekable_and_readers_do_not_share_a_position(base):
    put(base, "0123456789")
    url = storage.join(base, "0123456789")
    with storage.open_input(url) as a, storage.open_input(url) as b:
        a.seek(5)
        assert b.read(2) == b"01"
        assert a.read(2) == b"56"
    with pytest.raises(InputError, match="no file"):
        storage.open_input(storage.join(base, "missing"))


def test_small_files_are_read_whole_or_refused(base):
    put(base, "abc")
    url = storage.join(base, "abc")
    assert storage.read_bytes(url, limit_bytes=3) == b"abc"
    with pytest.raises(InputError, match="larger than the 2 bytes"):
        storage.read_bytes(url, limit_bytes=2)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(base, "missing"))


def test_list_names_and_exists(base):
    assert storage.list_names(base) == []
    put(base, "b", "a", "deep/c")
    assert storage.list_names(base) == ["a", "b", "deep"]
    assert storage.exists(storage.join(base, "a"))
    assert not storage.exists(storage.join(base, "c"))


def test_a_store_that_does_not_answer_is_not_taken_for_empty(base, monkeypatch):
    def broken(*args, **kwargs):
        raise PermissionError("no credentials")

    monkeypatch.setattr(type(fsspec.core.url_to_fs(base)[0]), "info", broken)
    with pytest.raises(InputError, match="PermissionError: no credentials"):
        storage.exists(storage.join(base, "a"))
    with pytest.raises(InputError, match="PermissionError: no credentials"):
        storage.expand(base)


def test_a_missing_driver_says_what_to_install(monkeypatch):
    for module in ("gcsfs", "gcsfs.core"):  # one that is loaded already would be found by its own name
        monkeypatch.setitem(sys.modules, module, None)
    forget_stores()  # an earlier test may have opened one
    with pytest.raises(InputError, match=r"^reading gs:// needs gcsfs: pip install 'penstock\[gcp\]'$"):
        storage.expand("gs://bucket/a.jsonl")
    with pytest.raises(InputError, match="Protocol not known: nosuch"):
        storage.expand("nosuch://bucket/a")


@given(st.lists(st.text(st.sampled_from("ab./"), min_size=1), min_size=1))
def test_a_joined_name_never_leaves_its_base(parts):
    try:
        joined = storage.join("/base/dir", *parts)
    except InputError:
        return
    assert os.path.normpath(joined) == joined
    assert joined.startswith("/base/dir/")


@pytest.mark.parametrize("part", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b"])
def test_a_name_that_leads_elsewhere_is_refused(part):
    with pytest.raises(InputError, match="not a name below"):
        storage.join("/base", part)


def test_join_keeps_the_form_of_its_base():
    assert storage.join("memory://", "a") == "memory://a"
    assert storage.join("file:///x/", "a", "b") == "file:///x/a/b"
    assert storage.join("out/", "a") == "out/a"


# --- publishing


@pytest.fixture
def eager_threads():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_only_the_first_of_many_threads_publishes(base, eager_threads):
    for round_ in range(40):
        url = storage.join(base, f"file-{round_}")
        barrier = threading.Barrier(8)

        def publish(i, url=url, barrier=barrier):
            barrier.wait()
            return storage.publish_if_absent(url, bytes([i]) * 10_000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(publish, range(8)))
        assert won.count(True) == 1
        assert storage.read_bytes(url) == bytes([won.index(True)]) * 10_000
    assert storage.list_names(base) == sorted(f"file-{round_}" for round_ in range(40))


def test_only_the_first_of_many_processes_publishes(tmp_path):
    code = """if True:
        import sys, time
        from pipeline import storage
        me, out = sys.argv[1:]
        while not storage.exists(out + "/go"):
            pass
        won = [i for i in range(100) if storage.publish_if_absent(f"{out}/f{i}", me.encode() * 1000)]
        storage.publish_if_absent(f"{out}/won-{me}", " ".join(map(str, won)).encode())
    """
    processes = [python(code, i, tmp_path) for i in range(3)]
    time.sleep(1)
    put(str(tmp_path), "go")
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    won = {i: storage.read_bytes(f"{tmp_path}/won-{i}").split() for i in range(3)}
    assert sorted(int(name) for names in won.values() for name in names) == list(range(100))
    for me, names in won.items():
        for name in names:
            assert (tmp_path / f"f{name.decode()}").read_bytes() == str(me).encode() * 1000


def test_a_publisher_killed_just_before_the_name_appears_leaves_nothing_visible(tmp_path):
    code = """if True:
        import os, signal, sys
        from pipeline import storage
        os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        storage.publish_if_absent(sys.argv[1] + "/part.parquet", b"x" * 100_000)
    """
    assert python(code, tmp_path).wait(60) == -signal.SIGKILL
    left = storage.list_names(str(tmp_path))
    assert len(left) == 1
    assert left[0].startswith(".part.parquet.")
    assert storage.remove_abandoned(str(tmp_path)) == left
    assert storage.list_names(str(tmp_path)) == []


def test_killed_at_any_moment_every_visible_file_is_whole(tmp_path):
    code = """if True:
        import itertools, sys
        from pipeline import storage
        for i in itertools.count():
            storage.publish_if_absent(f"{sys.argv[1]}/{i}", b"x" * 1_000_000)
    """
    for _ in range(4):
        before = storage.list_names(str(tmp_path))
        process = python(code, tmp_path)
        while storage.list_names(str(tmp_path)) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.random() * 0.1)
        process.kill()
        process.wait(60)
        storage.remove_abandoned(str(tmp_path))
        assert all(file.stat().st_size == 1_000_000 for file in tmp_path.iterdir())
    assert storage.exists(str(tmp_path / "0"))


def test_cleaning_leaves_live_publishers_alone(tmp_path):
    url = str(tmp_path / "part.parquet")
    with storage.scratch(url) as path:
        path.write_bytes(b"half")
        assert storage.remove_abandoned(str(tmp_path)) == []
        path.write_bytes(b"whole")
        assert storage.publish_if_absent(url, path)
    assert storage.list_names(str(tmp_path)) == ["part.parquet"]
    assert storage.read_bytes(url) == b"whole"


def test_a_publisher_whose_file_was_cleaned_before_it_was_locked_takes_another(tmp_path, monkeypatch):
    real = local_files.fcntl.flock
    cleaned = []

    def cleaned_first(f, operation):
        if not cleaned:
            cleaned.append(f.name)
            os.unlink(f.name)
        real(f, operation)

    monkeypatch.setattr(local_files.fcntl, "flock", cleaned_first)
    url = str(tmp_path / "a")
    with storage.scratch(url) as path:
        path.write_bytes(b"data")
        assert cleaned
        assert storage.remove_abandoned(str(tmp_path)) == []
        assert storage.publish_if_absent(url, path)
    assert storage.list_names(str(tmp_path)) == ["a"]


def test_a_file_from_elsewhere_is_published_as_a_copy(base, tmp_path):
    built = tmp_path / "built"
    built.write_bytes(b"data")
    url = storage.join(base, "deep/a")
    assert storage.publish_if_absent(url, built)
    assert not storage.publish_if_absent(url, b"other")
    built.write_bytes(b"changed")
    assert storage.read_bytes(url) == b"data"


def test_scratch_is_gone_afterwards_published_or_not(base):
    url = storage.join(base, "part")
    for data in (b"first", b"second"):
        with storage.scratch(url) as path:
            path.write_bytes(data)
            storage.publish_if_absent(url, path)
        assert not path.exists()
    assert storage.read_bytes(url) == b"first"
    assert storage.list_names(base) == ["part"]


def test_publish_over_replaces_but_does_not_touch_what_is_the_same(tmp_path):
    url = str(tmp_path / "_summary.json")
    storage.publish_over(url, b"one")
    before = os.stat(url)
    storage.publish_over(url, b"one")
    assert (os.stat(url).st_ino, os.stat(url).st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    storage.publish_over(url, b"two")
    assert storage.read_bytes(url) == b"two"


def test_publish_over_in_memory():
    url = f"memory://{uuid.uuid4().hex}/a"
    storage.publish_over(url, b"one")
    storage.publish_over(url, b"two")
    assert storage.read_bytes(url) == b"two"


def test_a_writable_place_is_left_as_it_was(base):
    put(base, "a")
    storage.check_writable(base)
    assert storage.list_names(base) == ["a"]


def test_what_cannot_be_written_is_an_early_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot .*file/out"):
        storage.check_writable(str(tmp_path / "file" / "out"))
    with pytest.raises(OutputError, match="no exclusive create; use a local path"):
        storage.check_writable("https://example.invalid/out")


def test_a_filesystem_without_hard_links_is_refused_with_a_way_out(tmp_path, monkeypatch):
    def refused(*names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(OutputError, match="needs a filesystem with hard links, or an object store"):
        storage.check_writable(str(tmp_path))
    assert storage.list_names(str(tmp_path)) == []


@pytest.mark.parametrize("base", ["{tmp}", "memory://absent"])
def test_a_missing_file_is_what_the_engine_expects_of_one(tmp_path, base):
    """The engine tries optional files of a checkpoint, and takes FileNotFoundError alone for their absence."""
    with pytest.raises(FileNotFoundError, match="there is no file") as caught:
        storage.open_input(storage.join(base.format(tmp=tmp_path), "generation_config.json"))
    assert isinstance(caught.value, InputError)


def test_a_full_disk_is_said_with_a_way_out(tmp_path, monkeypatch):
    def full(*names):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "replace", full)
    url = str(tmp_path / "part")
    for publish in (storage.publish_if_absent, storage.publish_over):
        with pytest.raises(OutputError, match=rf"cannot \w+ {url}: .*No space left on device; make room, and the same"):
            publish(url, b"data")
    with pytest.raises(OutputError, match=r"cannot build .*No space left on device; make room"), storage.scratch(url):
        full()
    with pytest.raises(OutputError, match=r"in .* \(TMPDIR\): .*No space left"), storage.scratch("memory://a/part"):
        full()
    assert os.listdir(tmp_path) == []
