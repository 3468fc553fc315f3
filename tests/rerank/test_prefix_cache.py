"""The cache of prompts: bounded, the oldest goes first, a user can be forgotten."""

import pytest

torch = pytest.importorskip("torch")

from hybridrec.rerank.prefix_cache import MEGABYTE, PrefixCache  # noqa: E402


def states(megabytes):
    half = torch.zeros(int(megabytes * MEGABYTE) // 8, 1, 1)
    return ((half, half),)


def test_what_was_not_used_for_longest_goes_first():
    cache = PrefixCache(3)
    for prompt in (b"a", b"b", b"c"):
        cache.put(prompt, states(1))
    assert cache.get(b"a") is not None
    cache.put(b"d", states(1))
    assert [cache.get(prompt) is None for prompt in (b"a", b"b", b"c", b"d")] == [0, 1, 0, 0]
    assert cache.size == 3 * MEGABYTE
    cache.put(b"a", states(2))
    assert cache.size <= 3 * MEGABYTE
    assert cache.get(b"a")[0][0].numel() == states(2)[0][0].numel()


def test_what_is_too_large_or_unwanted_is_not_kept():
    cache = PrefixCache(1)
    cache.put(b"small", states(0.5))
    cache.put(b"large", states(1.5))
    assert cache.get(b"large") is None
    assert cache.get(b"small") is not None
    none = PrefixCache(0)
    none.put(b"a", states(0.1))
    assert (len(none), none.size, none.get(b"a")) == (0, 0, None)


def test_a_user_is_forgotten_with_every_prompt_that_was_theirs():
    cache = PrefixCache(4)
    cache.put(b"a", states(1), user=7)
    cache.put(b"b", states(1), user=8)
    cache.put(b"c", states(1))
    cache.get(b"b", user=7)
    assert cache.forget(7) == 2
    assert [cache.get(prompt) is None for prompt in (b"a", b"b", b"c")] == [True, True, False]
    assert cache.size == MEGABYTE
    assert cache.forget(7) == 0
    cache.clear()
    assert (len(cache), cache.size) == (0, 0)
