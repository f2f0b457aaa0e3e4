"""How tests compile: thousands of small programs, each of which runs a few times at most.

So the compiler is told to think little: no optimisation by LLVM, and kernels by the older of its two ways to write
them. The programs compute the same, a little slower; this thinking was more than half of the time of tests of engines.
Where bits are compared that users are promised, programs are compiled as users compile them, and `make test-all`
compiles all of them so.
"""

from __future__ import annotations

import os

_QUICKLY = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)

FLAGS = "" if os.environ.get("PENSTOCK_TESTS_COMPILE") == "as users do" else " ".join(_QUICKLY)
"""In XLA_FLAGS, of this process and of those that tests start."""

AS_USERS_DO = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
"""Options of jax.jit that undo them for one program: what XLA does when it is told nothing."""
