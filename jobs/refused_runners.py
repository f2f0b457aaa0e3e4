"""Runners that Penstock does not run on, and why."""

from __future__ import annotations

_REFUSED = {
    "dask": "Beam's DaskRunner loses data and still reports DONE, so it is refused; use local",
    "direct": "Beam's DirectRunner first tries to download another runner, and hangs where the network swallows that; "
    "use local, which is the runner it falls back to",
    "render": "Beam's RenderRunner draws a pipeline and runs nothing; use local",
    "prism": "Beam's PrismRunner downloads a program and starts it; start Prism yourself and use the portable runner "
    "with its job endpoint",
}
_KEPT = "bundlebaseddirectrunner"  # Beam's own, without downloads, and it retries


def refused_runner(name: str) -> str | None:
    """Why a runner of this name (ours, Beam's, or a dotted path to a class) is refused; None if it is not."""
    last = name.rpartition(".")[2].lower()
    if last == _KEPT:
        return None
    return next((reason for part, reason in _REFUSED.items() if part in last), None)
