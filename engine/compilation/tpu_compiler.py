"""Compiles programs with the real TPU compiler, for chips that need not be there.

libtpu contains the whole compiler and runs on any x86-64 Linux machine. It can end its process, and it reads variables
of the environment that are named like its own flags, so it runs in a process of its own, with an environment made for
it. What it refuses for want of memory is an answer (`fits` is False); anything else that it refuses is an error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import errors
from engine.compilation.topology import Topology
from engine.compilation.tpu_process import BEGIN, REFUSED
from engine.errors import EngineError, NoFeasiblePlan
from engine.mesh import MeshShape

_LAST_LINES = 15
_NOISE = re.compile(r"[IW]\d{4} |E\d{4} .* RAW: |\s*(stack used: |0x|@ |---|\w\w+=[\da-f]+ )|https://|\*{9}|fiber_name")
"""The compiler's log of its progress, and the dump of memory with which it ends."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDS = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM")
_STATISTICS = re.compile(r"Statistics (before|after) scheduling|Total wasted cycles: (\S+)")
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache has no log
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=1048576",  # some programs overflow its own stacks
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "0",
    "TPU_STDERR_LOG_LEVEL": "0",
    "TPU_VMODULE": "latency_hiding_scheduler=1",
}
_DROPPED = re.compile(r"(XLA_|TPU_|LIBTPU_|TF_|JAX_COMPILATION_CACHE)")


class CompilerMissing(EngineError):
    """libtpu is not installed."""


class CompilerFailed(EngineError):
    """The TPU compiler broke down, or refused a program for a reason other than memory."""


@dataclass(frozen=True)
class Compiled:
    """One program as the compiler left it; bytes are per device."""

    name: str
    seconds: float
    """That the compiler took."""
    fits: bool
    peak_bytes: int
    """What the program needs at once: arguments, results and temporaries; also of one that does not fit."""
    text: str = ""
    """The compiled program; empty if it does not fit."""
    argument_bytes: int | None = None
    output_bytes: int | None = None
    temp_bytes: int | None = None
    """Some layouts of memory are looser than need be: arguments and temporaries may be more than the peak."""
    alias_bytes: int | None = None
    donated: int = 0
    """Arguments given up to the program."""
    scheduler_raw_seconds: float = 0.0
    """Asynchronous collectives, as the scheduler estimates them."""
    scheduler_exposed_seconds: float = 0.0


def compile_programs(
    topology: Topology,
    mesh: MeshShape,
    programs: str,
    description: Any,
    *,
    options: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> list[Compiled]:
    """Compiles what `programs`, "module:function", returns for (mesh, description) in the compiler's process.

    That is any number of (name, jitted function, arguments as ShapeDtypeStructs) with compiler options for this program
    as a fourth if they are not to be `options`, or the chip's. `description` is pickled.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise CompilerMissing("the TPU compiler is not installed: pip install 'penstock[tpu]'")
    axes = mesh_axes(topology, mesh)
    options = dict((topology.facts.options if options is None else options) or {})
    request = {
        "topology": topology.description(),
        "mesh": dict(axes),
        "programs": programs,
        "description": description,
        "options": options,
    }
    with tempfile.TemporaryDirectory(prefix="penstock-compile-") as folder:
        out = Path(folder)
        (out / "request").write_bytes(pickle.dumps(request))
        with (out / "log").open("w") as log:
            command = [sys.executable, "-m", "engine.compilation.tpu_process", str(out / "request"), folder]
            try:
                status = subprocess.run(
                    command, env=_environment(), stdout=log, stderr=log, timeout=timeout_seconds, check=False
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise CompilerFailed(f"the TPU compiler did not finish within {timeout_seconds:g} s") from error
        sections = (out / "log").read_text(errors="replace").split(BEGIN)
        if status == REFUSED and (out / "error.json").exists():
            refused = json.loads((out / "error.json").read_text())
            raise getattr(errors, refused["kind"], CompilerFailed)(refused["message"])
        if status:
            raise _failure(topology, status, sections[-1])
        return [
            _compiled(topology, json.loads(file.read_text()), file.with_suffix(".hlo"), sections[int(file.stem) + 1])
            for file in sorted(out.glob("[0-9]*.json"), key=lambda file: int(file.stem))
        ]


def mesh_axes(topology: Topology, mesh: MeshShape) -> tuple[tuple[str, int], ...]:
    """The mesh over all devices, major first: several slices are an axis of their own."""
    of_slice = replace(topology.mesh, slices=1)
    if mesh.slices not in (1, topology.count):
        raise NoFeasiblePlan(f"a mesh of {mesh} is {mesh.slices} slices, and {topology} is {topology.count}")
    mesh = replace(mesh, slices=1)
    if mesh.chips != of_slice.chips:
        per_chip = f" ({topology.chip.devices} a chip)" if topology.chip.devices > 1 else ""
        raise NoFeasiblePlan(
            f"a mesh of {mesh} is {mesh.chips} devices, and a slice of {topology} has "
            f"{of_slice.chips}{per_chip}; use {of_slice}, or another product of {of_slice.chips}"
        )
    slices = (("slice", topology.count),) if topology.count > 1 else ()
    return (*slices, ("x", mesh.x), ("y", mesh.y), ("z", mesh.z))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _DROPPED.match(name)}
    return kept | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _compiled(topology: Topology, result: Mapping[str, Any], text: Path, log: str) -> Compiled:
    name, seconds, donated = result["name"], result["seconds"], result["donated"]
    refused = result.get("refused")
    if refused is not None:
        needs = _NEEDS.search(log) or _NEEDS.search(refused)
        if needs is None:
            raise CompilerFailed(f"the TPU compiler refuses {name} for {topology}: {_shorten(refused)}")
        number, unit = (needs[1], needs[2]) if needs[1] else (needs[3], needs[4])
        return Compiled(name, seconds, False, int(float(number) * _UNITS[unit]), donated=donated)
    wasted = {"before": 0.0, "after": 0.0}
    when = "before"
    for found in _STATISTICS.finditer(log):
        when = found[1] or when
        wasted[when] += float(found[2] or 0)
    return Compiled(
        name=name,
        seconds=seconds,
        fits=result["peak_bytes"] <= topology.limit_bytes,
        text=text.read_text(),
        donated=donated,
        scheduler_raw_seconds=wasted["before"] / topology.facts.clock_hz,
        scheduler_exposed_seconds=wasted["after"] / topology.facts.clock_hz,
        peak_bytes=result["peak_bytes"],
        argument_bytes=result["argument_bytes"],
        output_bytes=result["output_bytes"],
        temp_bytes=result["temp_bytes"],
        alias_bytes=result["alias_bytes"],
    )


def _failure(topology: Topology, status: int, log: str) -> EngineError:
    """An error with what the process said last."""
    lines = [line for line in log.splitlines() if line.strip()]
    said = [line for line in lines if not _NOISE.match(line)] or lines
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    last = "\n  ".join(line[:300] for line in said[-_LAST_LINES:])
    return CompilerFailed(f"the TPU compiler {how} while compiling for {topology}. Its last words:\n  {last}")


def _shorten(message: str) -> str:
    return message if len(message) < 600 else message[:600] + " ..."
