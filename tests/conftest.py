"""Stricter than production: no silent dtype or rank promotion, and eight devices where a laptop has one.

Shapes and dtypes of everything in engine/ are checked by an import hook (`--jaxtyping-packages` in pyproject.toml).
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.compiling import AS_USERS_DO, FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # or every process that a test starts compiles every module
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests build the same small programs: compile each once a session, also for the processes it starts.
    _programs = tempfile.TemporaryDirectory(prefix="penstock-test-programs-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest
from hypothesis import settings

sys.dont_write_bytecode = False
gc.set_threshold(50_000)  # tracing makes many objects, and few that have to be looked for

settings.register_profile("penstock", deadline=None)  # a busy machine is no failure
settings.load_profile("penstock")

# What a user keeps (a machine's profile, how runs went, prices) must not bear on tests, nor tests on that.
_kept = tempfile.TemporaryDirectory(prefix="penstock-test-user-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["XDG_CONFIG_HOME"] = _kept.name


@pytest.fixture
def compiled_as_users_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of engines in this process; see tests.compiling."""
    monkeypatch.setattr("engine.runtime.executor.options_for", lambda kind: AS_USERS_DO)


_LONGEST = ("equivalence", "test_docs.py", "oracles")
"""What has few tests that take long; last, they would keep one worker busy while another has nothing left to do."""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] not in _LONGEST)
