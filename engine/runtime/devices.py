"""The devices of several processes as those of one jax: jax.distributed, with the settings that a batch job wants."""

from __future__ import annotations

import jax

from engine.errors import HostLost, NoFeasiblePlan
from engine.runtime.relay import Relay

CONNECT_SECONDS = 300
DISCONNECT_SECONDS = 60


_connected = False


def refuse_second_connection() -> None:
    """Raises HostLost where devices were connected before: jax does it once, and whoever retries need not wait."""
    if _connected:
        raise HostLost(
            "this process was part of an engine over several hosts, which has ended; another needs new processes. "
            "Start the job again on all hosts"
        )


def connect_devices(coordinator: str, count: int, process: int) -> None:
    """To be called before jax has touched a device, in all processes at about the same time.

    jax serves as `coordinator`, HOST:PORT, in process 0. Does nothing if the program has connected jax itself.
    """
    global _connected
    _connected = True
    if not jax.distributed.is_initialized():
        jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
        try:
            jax.distributed.initialize(
                coordinator if process == 0 else Relay(coordinator).address,
                num_processes=count,
                process_id=process,
                cluster_detection_method="deactivate",  # it would give each process of a Slurm job one GPU
                coordinator_bind_address=coordinator,
                initialization_timeout=CONNECT_SECONDS,
                shutdown_timeout_seconds=DISCONNECT_SECONDS,
            )
        except RuntimeError as error:
            raise NoFeasiblePlan(
                "an engine over several hosts needs a process of its own, that has not used its devices before: "
                f"{str(error).splitlines()[0]}"
            ) from error
    if jax.default_backend() == "cpu":
        # A program from the cache may send its messages in another order than one compiled anew, and jax keeps none
        # for followers. An accelerator's programs are the same in all processes.
        jax.config.update("jax_enable_compilation_cache", False)
    if jax.process_count() != count:
        raise NoFeasiblePlan(
            f"engine.hosts.count is {count}, and jax finds the devices of {jax.process_count()} processes"
        )


def disconnect_devices() -> None:
    """In all processes at about the same time; at exit jax would wait for the others."""
    jax.distributed.shutdown()
