"""The cache of results: bounded, least recently used out first, shared by threads."""

from __future__ import annotations

import threading

from lib_ipadapter.session.cache import ResultCache


def test_what_was_used_last_stays() -> None:
    cache = ResultCache(30)
    for name in "abc":
        cache.put(name, name.upper(), 10)
    assert cache.get("a", str) == "A"
    cache.put("d", "D", 10)
    assert cache.get("b", str) is None
    assert [cache.get(name, str) for name in "acd"] == ["A", "C", "D"]
    assert cache.held_bytes == 30


def test_a_value_larger_than_the_cap_is_not_kept() -> None:
    cache = ResultCache(10)
    cache.put("large", "x", 11)
    assert cache.get("large", str) is None
    assert cache.held_bytes == 0


def test_replacing_a_value_counts_it_once() -> None:
    cache = ResultCache(30)
    cache.put("a", "old", 20)
    cache.put("a", "new", 5)
    assert (cache.held_bytes, cache.get("a", str)) == (5, "new")


def test_a_smaller_cap_acts_at_once() -> None:
    cache = ResultCache(100)
    for n in range(10):
        cache.put(n, str(n), 10)
    cache.set_cap(25)
    assert cache.held_bytes == 20
    assert [cache.get(n, str) for n in (7, 8, 9)] == [None, "8", "9"]
    cache.clear()
    assert cache.held_bytes == 0


def test_a_value_of_another_kind_is_no_hit() -> None:
    cache = ResultCache(100)
    cache.put("a", "text", 1)
    assert cache.get("a", dict) is None
    assert cache.get_or_make("a", dict, lambda: ({"made": 1}, 1)) == {"made": 1}
    assert cache.get_or_make("a", dict, lambda: ({"made": 2}, 1)) == {"made": 1}


def test_threads_never_push_it_over_its_bound() -> None:
    cache, seen = ResultCache(50), []

    def work(seed: int) -> None:
        for n in range(300):
            cache.put((seed * n) % 17, n, 7)
            cache.get(n % 17, int)
            seen.append(cache.held_bytes)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.put("last", 1, 7)
    assert cache.held_bytes <= 50
    assert max(seen) <= 50 + 4 * 7


def test_what_is_larger_than_the_cache_leaves_the_rest_alone() -> None:
    cache = ResultCache(100)
    cache.put("a", "kept", 40)
    cache.put("big", "too large", 101)
    assert cache.get("a", str) == "kept"
    assert cache.get("big", str) is None
    assert cache.held_bytes == 40
