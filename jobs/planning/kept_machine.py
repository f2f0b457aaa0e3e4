"""`penstock profile`: measures this machine and keeps what was found, for plans that are to run on it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.errors import NoFeasiblePlan
from engine.planning.machine import Machine
from pipeline.errors import JobError


def run(options: argparse.Namespace, console: Console) -> bool:
    """Measures, writes the profile and prints it."""
    path = Path(options.out) if options.out else kept_at()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"the profile cannot be written to {path}: {error}; name another place with --out") from error

    from engine.compilation.measure import measure

    console.print("measuring: one to three minutes; whatever else the machine does meanwhile is measured too")
    machine = measure()
    path.write_text(machine.to_json() + "\n")
    console.print(rendered(machine))
    console.print(f"kept in {path}")
    return True


def kept_at() -> Path:
    """Where the profile of this machine is kept for its user."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "penstock" / "machine.json"


def kept_machine(path: Path | None = None) -> Machine:
    """The machine as it was measured; NoFeasiblePlan if it was not."""
    path = path or kept_at()
    try:
        return Machine.from_json(path.read_text())
    except FileNotFoundError as error:
        raise NoFeasiblePlan(f"there is no profile in {path}; measure this machine with penstock profile") from error


def rendered(machine: Machine) -> Table:
    table = Table(title=f"{machine.name}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for dtype, rates in machine.products.items():
        table.add_row(f"products in {dtype}", f"{rates.flops_per_second / 1e9:.0f} GFLOP/s")
        table.add_row(f"weights in {dtype}", f"{rates.bytes_per_second / 1e9:.1f} GB/s")
    table.add_row("keys and values", f"{machine.cache_bytes_per_second / 1e9:.1f} GB/s")
    table.add_row("vector work", f"{machine.vector_bytes_per_second / 1e9:.1f} GB/s")
    for what, seconds in (
        ("a program", machine.pass_seconds),
        ("a layer", machine.layer_seconds),
        ("a row in a layer of decode", machine.row_seconds),
        ("a logit", machine.logit_seconds),
    ):
        table.add_row(what, f"{seconds * 1e6:.3g} us")
    table.add_row("error on the measured programs", f"{machine.error_fraction:.0%}")
    return table
