"""The Dockerfile, read and not built: its instructions, what it copies, and that its versions are ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from jobs.submission.dataflow_machines import TPU_HOSTS

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "container"
TARGETS = ("tpu", "cuda", "cpu")


def instructions() -> list[tuple[str, str]]:
    """What the Dockerfile says, one instruction after the other, its lines joined."""
    lines = (CONTAINER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def arguments() -> dict[str, str]:
    pairs = (rest.partition("=") for word, rest in instructions() if word == "ARG")
    return {name: default for name, equals, default in pairs if equals}


def constraints(target: str) -> dict[str, Version]:
    lines = (CONTAINER / f"constraints-{target}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed")
    ended = subprocess.run([found, str(CONTAINER / "Dockerfile")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_instructions_are_known_and_begin_with_a_base() -> None:
    known = {"ARG", "FROM", "SHELL", "ENV", "COPY", "RUN", "ENTRYPOINT"}
    words = [word for word, _ in instructions()]
    assert set(words) == known
    assert words[words.index("FROM") - 1] == "ARG"
    stages = [rest.rpartition(" AS ")[2] for word, rest in instructions() if word == "FROM"]
    assert stages == ["beam", "worker"]


def test_whatever_is_copied_is_there_and_in_the_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = 0
    for word, rest in instructions():
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            for target in TARGETS:
                assert (ROOT / source.replace("${TARGET}", target)).exists(), source
            assert any(re.fullmatch(keep.replace("*", ".*"), source.replace("${TARGET}", "tpu")) for keep in kept)
            copied += 1
    assert copied >= 8
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packages["packages"]) <= set(kept)


def test_beams_own_program_is_the_entry_and_of_the_same_version_as_the_library() -> None:
    assert ("COPY", "--from=beam /opt/apache/beam /opt/apache/beam") in instructions()
    assert ("ENTRYPOINT", '["/opt/apache/beam/boot"]') in instructions()
    assert any(rest.startswith("apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION}") for _, rest in instructions())
    for target in TARGETS:
        assert str(constraints(target)["apache-beam"]) == arguments()["BEAM_VERSION"]
    assert arguments()["BEAM_VERSION"] == metadata.version("apache-beam")


@pytest.mark.parametrize("target", TARGETS)
def test_pinned_versions_are_those_that_pyproject_allows(target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["gcp"], *extras["s3"], *extras.get(target, [])]
    pinned = constraints(target)
    for requirement in map(Requirement, asked):
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{name}: run python container/pin.py {target}"
        assert pinned[name] in requirement.specifier, f"{requirement}: run python container/pin.py {target}"
    accelerator = {"tpu": "libtpu", "cuda": "jax-cuda13-plugin", "cpu": "jaxlib"}[target]
    assert accelerator in pinned


def test_the_tpu_is_described_to_its_runtime_as_the_reference_says() -> None:
    (environment,) = [rest for word, rest in instructions() if word == "ENV"]
    values = dict(pair.split("=", 1) for pair in environment.split())
    assert (
        values
        | {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_HOST_BOUNDS": "1,1,1",
            "TPU_CHIPS_PER_HOST_BOUNDS": "${TPU_BOUNDS}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "TPU_ACCELERATOR_TYPE": "${TPU_TYPE}",
        }
        == values
    )
    default = TPU_HOSTS["v5e"][0]
    assert (arguments()["TPU_TYPE"], arguments()["TPU_BOUNDS"]) == (default.accelerator_type, default.bounds)


def test_the_lists_are_made_of_what_pip_reports() -> None:
    from container.pin import pinned

    report = {"install": [{"metadata": {"name": n, "version": "1"}} for n in ("Typing_Extensions", "penstock", "a")]}
    assert pinned(report, "cpu").splitlines()[1:] == ["a==1", "typing-extensions==1"]
