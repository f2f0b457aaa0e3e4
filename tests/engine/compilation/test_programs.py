"""Programs are compiled once each, and change the cache in place."""

from __future__ import annotations

import numpy as np

from engine.compilation.placement import Placement
from engine.runtime import executor
from engine.runtime.executor import Executor
from engine.runtime.slot_table import SlotTable
from tests.engine.tiny import CONFIG, EOS, options, random_params

SHAPES = options()


def test_the_cache_is_donated_and_updated_in_place() -> None:
    programs = Executor(random_params(), Placement(CONFIG), SHAPES, EOS)
    cache = programs.new_cache()
    cache_bytes = sum(x.nbytes for x in [*cache.keys, *cache.values])
    slots = SlotTable(SHAPES, CONFIG.vocab)
    slots.state.finish[0] = 0
    slots.state.max_tokens[0] = 100
    slots.pages[0, 0] = np.arange(1, 1 + SHAPES.blocks_per_slot)
    tokens, table = np.ones((4, 16), np.int32), np.arange(1, 5, dtype=np.int32)[None, :, None]

    given = cache
    cache = programs.prefill_into(cache, tokens, table)
    assert all(x.is_deleted() for x in given.keys + given.values)
    given = cache
    cache = programs.copy_pages(cache, [[(1, 5)]])
    assert all(x.is_deleted() for x in given.keys + given.values)
    given = cache
    cache, *_ = programs.decode(cache, slots.pages, slots.state, 8)
    assert all(x.is_deleted() for x in given.keys + given.values)
    np.testing.assert_array_equal(cache.keys[0][5, :, 1:], cache.keys[0][2, :, 1:])

    for name in ("insert[4x16]", "copy", "decode[8x8]"):
        analysis = programs._compiled[name].memory_analysis()
        assert analysis.alias_size_in_bytes >= cache_bytes, f"{name} copies the cache"
    assert analysis.temp_size_in_bytes < cache_bytes + 4e6


def test_each_program_is_compiled_once() -> None:
    programs = Executor(random_params(), Placement(CONFIG), SHAPES, EOS)
    first = programs.score(np.ones((4, 16), np.int32))
    compiled = programs._compiled["score[4x16]"]
    second = programs.score(np.ones((4, 16), np.int32))
    assert programs._compiled["score[4x16]"] is compiled
    assert programs.names == ("score[4x16]",)
    np.testing.assert_array_equal(first[0], second[0])


def test_options_that_the_compiler_does_not_have_are_left_out(monkeypatch, caplog) -> None:
    monkeypatch.setattr(executor, "options_for", lambda kind: {f"xla_only_of_{kind}": "true"})
    tokens = np.ones((4, 16), np.int32)
    got = Executor(random_params(), Placement(CONFIG), SHAPES, EOS).score(tokens)
    assert "No such compile option: 'xla_only_of_cpu'" in caplog.text
    monkeypatch.undo()
    expected = Executor(random_params(), Placement(CONFIG), SHAPES, EOS).score(tokens)
    np.testing.assert_array_equal(got[0], expected[0])
