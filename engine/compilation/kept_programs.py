"""jax's own cache of compiled programs on disk: which directory, and for which machines."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import jax

_CPU_FACTS = ("flags", "Features", "model name")


def is_kept_already() -> bool:
    """Whether the user has told jax where to keep programs (JAX_COMPILATION_CACHE_DIR)."""
    return bool(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]


def keep_programs_in(directory: Path) -> None:
    """From now on jax looks there before it compiles, and writes there what it has compiled. An error of the cache is
    a warning of jax and never one of the program."""
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA would keep its autotuning there too, and then the directory's name is part of every program's.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # it may be open elsewhere


def machine() -> str:
    """A name that two machines share only if programs of one run on the other. No device is touched.

    jax tells programs apart by what they compute, for which kind of device, with which compiler and options; but all
    CPUs are one kind to it, though a program for one may hold instructions that another lacks.
    """
    facts = [platform.machine(), platform.system()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        facts += [line for line in lines if line.startswith(_CPU_FACTS)]
    except OSError:
        facts.append(platform.processor())
    return f"jax-{jax.__version__}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
