"""A picture counts as sent when the engine core gets it: the cache alone, against vLLM's own."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from adaptvis_vllm.engine.sent_pictures import SentPictures, count_handovers, hand_over

KIB = 2**10


@pytest.fixture
def config() -> Any:
    """A model whose caches hold 8 KiB of pictures."""
    mm = SimpleNamespace(mm_processor_cache_gb=8 * KIB / 2**30)
    return SimpleNamespace(get_multimodal_config=lambda: mm)


@pytest.fixture
def cache(config: Any) -> SentPictures:
    return SentPictures(config)


def render(cache: SentPictures, *names: str, size: int = KIB) -> list[Any]:
    """The features of a request about these pictures, in vLLM's processor's order of calls."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange

    known = cache.is_cached(list(names))
    made = [
        None if k else (MultiModalKwargsItem.dummy(size), [n])
        for n, k in zip(names, known, strict=True)
    ]
    features = []
    for name in names:
        cache.touch_sender_cache_item(name)
    for name, item in zip(names, made, strict=True):
        data, updates = cache.get_and_update_item(item, name)
        assert updates == [name]
        at = PlaceholderRange(0, 1)
        features.append(MultiModalFeatureSpec(data, "image", name, at, mm_hash=name))
    cache.release_sender_touches()
    return features


def sent(features: list[Any]) -> list[bool]:
    return [feature.data is not None for feature in features]


def test_only_what_was_handed_over_is_kept_back(cache: SentPictures) -> None:
    assert sent(render(cache, "a")) == [True]  # refused: the request is gone
    first = render(cache, "a", "b")
    second = render(cache, "b", "c")  # while the first one is on its way
    assert sent(first) == sent(second) == [True, True]
    assert second[0].data is first[1].data  # processed once
    cache.handed_over(first)
    assert sent(render(cache, "a", "b", "c")) == [False, False, True]
    assert cache.make_stats(delta=True).hits == 4
    cache.handed_over(second)
    assert sent(render(cache, "c")) == [False]
    cache.invalidate("c")
    assert sent(render(cache, "c")) == [True]
    cache.clear_cache()
    assert sent(render(cache, "a")) == [True]


def test_refused_requests_hold_no_memory(cache: SentPictures) -> None:
    for number in range(100):
        render(cache, f"{number}")
    gc.collect()
    assert not cache._waiting
    assert not len(cache._cache)


def test_a_promised_picture_is_there(cache: SentPictures) -> None:
    """Between the two looks of one rendering another request's end may drop it."""
    kept = render(cache, "a")
    assert cache.is_cached(["a"]) == [True]
    del kept
    gc.collect()
    data, updates = cache.get_and_update_item(None, "a")
    assert data is not None
    assert updates == ["a"]


@pytest.mark.parametrize("seed", range(20))
def test_the_same_as_in_the_engine_core(config: Any, seed: int) -> None:
    """Requests that are refused, overtake one another, and are more than the caches hold."""
    from vllm.multimodal.cache import LruKeyReplicatedReceiverCache

    rng = random.Random(seed)
    cache, core = SentPictures(config), LruKeyReplicatedReceiverCache(config)
    sizes = {f"{n}": rng.choice([1, KIB, 2 * KIB, 9 * KIB]) for n in range(12)}
    waiting: list[list[Any]] = []
    kept_back = 0
    for _ in range(400):
        names = rng.sample(list(sizes), rng.randrange(1, 4))
        # Sizes differ by picture: one request has pictures of one size here.
        names = [n for n in names if sizes[n] == sizes[names[0]]]
        waiting.append(render(cache, *names, size=sizes[names[0]]))
        rng.shuffle(waiting)
        while waiting and (len(waiting) > 2 or rng.random() < 0.5):
            features = waiting.pop()
            if rng.random() < 0.3:
                continue  # refused
            there = set(core._cache)
            lost = [f for f in features if f.data is None and f.mm_hash not in there]
            if lost:  # turned over between rendering and handing over: vLLM's own retryable error
                for feature in lost:
                    cache.invalidate(feature.mm_hash)
                continue
            kept_back += sum(f.data is None for f in features)
            cache.handed_over(features)
            core.get_and_update_features(features)
            assert list(cache._cache.order) == list(core._cache.order)
    assert kept_back > 20


def test_threads(cache: SentPictures) -> None:
    """Rendering in one thread, handing over in another, as in a server."""
    rng = random.Random(0)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(300):
            names = rng.sample("abcdefghijkl", 2)
            pool.submit(cache.handed_over, render(cache, *names)).add_done_callback(
                lambda future: future.result()
            )
    assert set(cache._cache) <= set("abcdefghijkl")


def test_other_caches_are_left_alone(config: Any) -> None:
    """What vLLM uses without a cache, with several front ends, and for shared memory."""
    from vllm.multimodal.cache import LruKeyReplicatedSenderCache, MultiModalProcessorOnlyCache

    config.model_config = config
    others = (None, MultiModalProcessorOnlyCache(config))
    for other in others:
        assert count_handovers(lambda _, other=other: other, config) is other
    made = count_handovers(lambda _: LruKeyReplicatedSenderCache(config), config)
    assert type(made) is SentPictures

    taken: list[Any] = []
    processor = SimpleNamespace(adaptvis_sent=others[1], request_states={})
    request = SimpleNamespace(request_id="1", mm_features=[1])
    hand_over(lambda self, request: taken.append(request), processor, request)
    assert len(taken) == 1
