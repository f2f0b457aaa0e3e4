"""What can go wrong in the engine, as one short hierarchy.

Every message says what was found, where, and what to do about it; the `penstock` command prints it as it stands.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors the engine raises on purpose."""


class UnsupportedCheckpoint(EngineError):
    """The checkpoint is damaged, incomplete, or describes a model this engine does not compute exactly."""


class RequestError(EngineError, ValueError):
    """One request cannot be served (empty, too long, an impossible sampling field); others are unaffected."""


class OutOfMemory(EngineError):
    """The device cannot hold the weights, the cache and one program's temporaries at the same time."""


class NoFeasiblePlan(EngineError):
    """No mesh, layout and batch satisfy the constraints that were given."""


class WrongDevice(NoFeasiblePlan):
    """The devices that were found are not those that the job, or its plan, asks for."""


class EngineClosed(EngineError):
    """The engine was closed, or its device thread died, before the request was finished."""


class HostLost(EngineClosed):
    """Of an engine that spans several hosts, another process is gone, never came, or is set up for something else."""


class DeviceHung(EngineClosed):
    """A call on the device did not come back. Nothing can be done with the device in this process any more."""
