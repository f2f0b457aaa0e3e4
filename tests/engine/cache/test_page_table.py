from __future__ import annotations

import pytest

from engine.cache.page_table import PagePool


def test_pages_are_handed_out_once_and_come_back() -> None:
    pool = PagePool(5)
    first = pool.allocate(3)
    second = pool.allocate(2)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert pool.free == 0
    pool.release(first)
    assert pool.free == 3


def test_a_shared_page_is_free_only_after_its_last_holder() -> None:
    pool = PagePool(2)
    pages = pool.allocate(2)
    pool.retain(pages[:1])
    pool.release(pages)
    assert pool.free == 1
    pool.release(pages[:1])
    assert pool.free == 2


def test_misuse_is_caught() -> None:
    pool = PagePool(2)
    with pytest.raises(AssertionError, match="asked for 3"):
        pool.allocate(3)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(pages)
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.retain(pages)
