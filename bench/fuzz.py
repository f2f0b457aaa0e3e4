"""Coverage-guided fuzzing of every parser, by atheris: do only announced errors come out, in bounded time and memory?

    pip install atheris
    python -m bench.fuzz --seconds 60                 # of every target
    python -m bench.fuzz parquet template --seconds 600

Each target runs in a process of its own, which ends at the first fault, at an input that takes more than --slowest
seconds, or at more than --memory MiB. The input that did it is kept, and its name is printed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main() -> int:
    options = _options()
    failed = [name for name in options.targets or TARGETS if not _run(name, options)]
    print(f"faults in {', '.join(failed)}" if failed else "no faults")
    return bool(failed)


def _run(name: str, options: argparse.Namespace) -> bool:
    """One target in its own process; whether nothing was found."""
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as corpus:
        for i, seed in enumerate(TARGETS[name].seeds()):
            (Path(corpus) / f"seed-{i}").write_bytes(seed)
        kept = Path(options.keep)
        kept.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "bench.fuzz_one", name, corpus]
        command += [
            f"-max_total_time={options.seconds}",
            f"-timeout={options.slowest}",
            f"-artifact_prefix={kept}/{name}-",
        ]
        command += [f"-rss_limit_mb={options.memory}", "-max_len=20000", "-print_final_stats=1", "-verbosity=1"]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = ended.stdout + ended.stderr
    found = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
    covered = re.findall(r"cov: (\d+)", said)
    print(
        f"{name:<18}{int(found.get('number_of_executed_units', 0)):>9,} inputs, {covered[-1] if covered else '?':>5} "
        f"branches, {found.get('peak_rss_mb', '?'):>5} MiB at most: {'ok' if ended.returncode == 0 else 'FAULT'}",
        flush=True,
    )
    if ended.returncode:
        print("\n".join(said.splitlines()[-40:]))
    return ended.returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--slowest", type=int, default=20, help="seconds that one input may take (default: 20)")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the process may take (default: 2048)")
    parser.add_argument("--keep", default="fuzz-faults", metavar="DIR", help="where inputs that fail are kept")
    options = parser.parse_args()
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
