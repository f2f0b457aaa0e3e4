"""Compiled programs are kept and given back whole; whatever is wrong with the place costs time, and never the run."""

import logging
import os
import stat
import subprocess
import sys
import time
import uuid
import zlib
from pathlib import Path

import pytest

from engine.compilation.kept_programs import machine
from pipeline.programs import KEPT_DAYS, Programs, default_place

ROOT = Path(__file__).parents[2]
NAME = "jit_program-0a1b2c-cache"
PROGRAM = zlib.compress(b"machine code" * 1000)


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    return str(tmp_path / "kept") if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


def compiled(place, program=PROGRAM, name=NAME):
    """A run that compiles one program."""
    programs = Programs(place, "machine")
    (programs.directory / name).write_bytes(program)
    programs.share()
    return programs


def found(place, machine="machine"):
    programs = Programs(place, machine)
    return {file.name: file.read_bytes() for file in programs.directory.iterdir()}


def test_what_one_run_compiled_the_next_one_finds(place):
    compiled(place)
    assert found(place) == {NAME: PROGRAM}
    assert found(place, machine="another") == {}


def test_a_program_that_is_being_written_is_not_kept(place):
    programs = compiled(place, PROGRAM[: len(PROGRAM) // 2])
    assert found(place) == {}
    (programs.directory / NAME).write_bytes(PROGRAM)
    programs.share()
    assert found(place) == {NAME: PROGRAM}


@pytest.mark.parametrize("damage", [lambda kept: kept[:-1], lambda kept: b"", lambda kept: kept[:-1] + b"?"])
def test_a_damaged_program_is_not_used_and_is_replaced(tmp_path, damage):
    place = str(tmp_path)
    compiled(place)
    (file,) = (tmp_path / "machine").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert found(place) == {}
    compiled(place)
    assert found(place) == {NAME: PROGRAM}


def test_strange_files_are_left_alone(tmp_path):
    compiled(str(tmp_path))
    (tmp_path / "machine" / "README").write_text("not ours")
    assert found(str(tmp_path)) == {NAME: PROGRAM}


@pytest.mark.parametrize("wrong", ["a file in the way", "read-only", "full"])
def test_a_place_that_cannot_be_used_is_a_warning(tmp_path, wrong, caplog, monkeypatch):
    place = tmp_path / "kept"
    if wrong == "a file in the way":
        place.write_text("")
    else:
        compiled(str(place))
        error = (
            PermissionError(13, "Permission denied") if wrong == "read-only" else OSError(28, "No space left on device")
        )

        def refused(*names):
            raise error

        monkeypatch.setattr(os, "link", refused)
    with caplog.at_level(logging.WARNING):
        programs = compiled(str(place), name="jit_other-0-cache")
        programs.share()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("compiled programs are not kept (engine.compile_cache): ")
    assert len(list(programs.directory.iterdir())) == (1 if wrong == "a file in the way" else 2)


def test_programs_that_nobody_uses_are_removed_after_a_while(tmp_path):
    compiled(str(tmp_path))
    compiled(str(tmp_path), name="jit_old-0-cache")
    old = time.time() - (KEPT_DAYS + 1) * 24 * 3600
    os.utime(tmp_path / "machine" / "jit_old-0-cache", (old, old))
    assert found(str(tmp_path)) == {NAME: PROGRAM}


def test_the_directory_of_a_run_goes_with_it(tmp_path):
    programs = compiled(str(tmp_path))
    directory = programs.directory
    del programs
    assert not directory.exists()


def test_by_default_it_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled(default_place())
    assert default_place() == str(tmp_path / "penstock" / "programs")
    assert stat.S_IMODE((tmp_path / "penstock" / "programs" / "machine").stat().st_mode) == 0o700


COMPILES = """if True:
    import sys
    from engine.compilation import kept_programs
    from pipeline.programs import Programs
    programs = Programs(sys.argv[1], kept_programs.machine())
    kept_programs.keep_programs_in(programs.directory)
    import jax, jax.numpy as jnp
    from jax._src import monitoring
    events = []
    monitoring.register_event_listener(lambda name, **_: events.append(name))
    f = jax.jit(lambda x: jnp.tanh(x @ x.T).sum(axis=0) * 3)
    print(f(jnp.arange(64 * 64, dtype=jnp.float32).reshape(64, 64) / 4096).tobytes().hex())
    programs.share()
    print(sum(name == "/jax/compilation_cache/cache_hits" for name in events))
"""


def test_jax_takes_programs_from_it_and_computes_the_same_bits(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", COMPILES, str(tmp_path)]
    runs = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert runs[0][0] == runs[1][0]
    assert int(runs[0][1]) == 0
    assert int(runs[1][1]) >= 1
    assert [path.name for path in tmp_path.iterdir()] == [machine()]
