"""Where a job or a phase might run: slices by name, or what is here.

`here` is whatever jax finds on this machine; `cpu` is its processor as `penstock profile` measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.planning.chips import Chip
from engine.planning.program import Dtype
from engine.planning.slices import Slice, named_slices, slices_of
from jobs.planning.kept_machine import kept_at, kept_machine
from jobs.planning.prices import CPU
from pipeline.errors import JobError, PenstockError

HERE = "here"


class NothingForeseen(PenstockError):
    """Why nothing can be said of a job on what is here. It runs all the same."""


@dataclass(frozen=True)
class Here:
    """What this machine computes on. `chip`: None for its processor."""

    chip: Chip | None
    count: int

    @classmethod
    def found(cls) -> Here:
        """Takes hold of accelerators, if there are any; NothingForeseen for one that is in no table."""
        from engine.compilation.here import devices_here, is_processor_alone

        if is_processor_alone():
            return cls(None, 1)
        devices = devices_here()
        if devices.platform == "cpu":
            return cls(None, 1)
        if devices.chip is None:
            raise NothingForeseen(f"nothing is known of a device called {devices.kind!r}, so nothing is predicted")
        return cls(devices.chip, devices.count)

    @classmethod
    def processor(cls) -> Here | None:
        """This machine's, if it has nothing else and was measured; asks no device."""
        from engine.compilation.here import is_processor_alone

        return cls(None, 1) if is_processor_alone() and kept_at().exists() else None

    def check_known(self) -> None:
        """NothingForeseen, if this is a processor that was not measured."""
        if self.chip is None and not kept_at().exists():
            raise NothingForeseen(
                "nothing is predicted on this processor; `penstock profile` measures it once, in one to three minutes"
            )

    def refuse_plan_of_others(self, chips: str, workers: int, path: str) -> None:
        """JobError, if a plan is for chips that this machine does not have."""
        if chips.partition(":")[0] != (self.chip.name if self.chip else CPU):
            raise JobError(f"--plan {path} is for {chips}, here is {self}; plan again with --chips here")
        if self.chip and Slice.parse(chips).chips * self.chip.devices > self.count:
            raise JobError(f"--plan {path} is for {chips}, here are {self}; plan again with --chips here")
        if workers > 1:
            raise JobError(
                f"--plan {path} is for {workers} workers, and this run is one; plan again with fewer --max-chips"
            )

    def __str__(self) -> str:
        return CPU if self.chip is None else f"{self.count} {self.chip.name}"


def named_places(text: str, most_chips: int, weights: Dtype) -> list[Slice]:
    """Reads "v5e:4x4,v6e", "here" or "cpu"."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    ours = [name for name in names if name in (CPU, HERE)]
    others = ",".join(name for name in names if name not in ours)
    found = named_slices(others, most_chips) if others or not ours else []
    for name in ours:
        here = Here.found() if name == HERE else Here(None, 1)
        found.append(slice_of(here, 1, weights) if here.chip is None else whole_slice(here.chip, here.count))
    return list(dict.fromkeys(found))


def processor(weights: Dtype) -> Slice:
    """This machine's processor as it was measured; NoFeasiblePlan if it was not."""
    machine = kept_machine()
    return Slice(replace(machine.chip(weights), name=CPU), (1,), calibration=machine.calibration(weights))


def slice_of(here: Here, devices: int, weights: Dtype) -> Slice:
    """What a job with a mesh of so many devices takes of what is here."""
    if here.chip is None:
        if devices > 1:
            raise NothingForeseen("of a mesh over one machine's processor nothing is predicted")
        return processor(weights)
    return whole_slice(here.chip, -(-devices // here.chip.devices))


def whole_slice(chip: Chip, count: int) -> Slice:
    """So many chips of a kind: a slice that is sold, the squarest, or else a line."""
    sold = [one for one in slices_of(chip, count) if one.chips == count]
    shape = (count,) if not chip.is_tpu else (count, *[1] * (len(chip.pod) - 1))
    return min(sold, key=lambda one: max(one.shape)) if sold else Slice(chip, shape)


def place_words(on: Slice, workers: int = 1) -> str:
    """`v5e:4x4`, `2 x v5e:4x4`, `this machine's processor`."""
    if on.chip.name == CPU:
        return "this machine's processor"
    return str(on) if workers == 1 else f"{workers} x {on}"


def kinds(slices: Sequence[Slice]) -> set[str]:
    return {on.chip.name for on in slices}
