"""Devices by the names that jax gives them."""

from __future__ import annotations

import pytest

from engine.compilation import here
from engine.compilation.here import chip_of, devices_here, is_processor_alone


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v3", "v3"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("TPU v5 lite pod of next year", None),
        ("TPU v9", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_chips_are_known_by_what_jax_calls_them(kind: str, name: str | None) -> None:
    chip = chip_of(kind)
    assert (chip and chip.name) == name


def test_a_processor_alone_is_known_without_asking_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_processor_alone()  # the tests say so
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(here, "_FILES", ("/dev/null",))
    assert not is_processor_alone()
    monkeypatch.setattr(here, "_FILES", ("/dev/no-such-*",))
    assert is_processor_alone()


def test_the_devices_of_the_tests() -> None:
    found = devices_here()
    assert (found.platform, found.count, found.chip) == ("cpu", 8, None)
