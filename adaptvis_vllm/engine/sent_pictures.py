"""Which pictures the engine core holds, known in the front end without asking it.

vLLM's sender cache notes a picture as sent while a request is rendered, and sends it no more.
A request that is refused or cancelled afterwards, for whatever reason, leaves the engine core
without it: the next request about it fails with `MultiModalCacheMissError`. Here a picture is
sent with every request until one that carries it was handed to the engine core. The cache's
order of eviction follows the handing over too, so it is that of the engine core's cache.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cachetools import Cache
from vllm.multimodal.cache import LruKeyReplicatedSenderCache
from vllm.multimodal.cache.base import MultiModalProcessorCacheItemMetadata
from vllm.utils.cache import CacheInfo

from adaptvis_vllm.engine.mapping import collected


class SentPictures(LruKeyReplicatedSenderCache):
    """Takes the place of vLLM's sender cache of the same kind.

    Rendering runs in one thread, handing over in another: hence the lock.
    """

    def __init__(self, model_config: Any) -> None:
        super().__init__(model_config)
        self._lock = threading.RLock()
        # hash -> rendered item, as long as a request holds it, and what the cache keeps of it.
        self._waiting: dict[str, tuple[weakref.ref[Any], MultiModalProcessorCacheItemMetadata]] = {}
        self._found = threading.local()  # what `is_cached` promised this thread's rendering
        self._hits = self._total = 0
        self._last = CacheInfo(hits=0, total=0)

    def is_cached_item(self, mm_hash: str) -> bool:
        return self._look_up(mm_hash) is not None

    def is_cached(self, mm_hashes: list[str]) -> list[bool]:
        found = {mm_hash: self._look_up(mm_hash) for mm_hash in mm_hashes}
        self._promised().update({k: v for k, v in found.items() if v is not None})
        return [found[mm_hash] is not None for mm_hash in mm_hashes]

    def get_and_update_item(self, mm_item: Any, mm_hash: str) -> Any:
        found = self._look_up(mm_hash)
        if found is None and mm_item is None:
            found = self._promised()[mm_hash]
        self._total += 1
        if found is not None:
            self._hits += 1
            return found
        item, updates = mm_item
        kept = MultiModalProcessorCacheItemMetadata(item, updates)
        self._waiting[mm_hash] = weakref.ref(item, self._forget(mm_hash)), kept
        return mm_item

    def touch_sender_cache_item(self, mm_hash: str) -> None:
        """The order changes when a request is handed over."""

    def release_sender_touches(self) -> None:
        self._promised().clear()

    def handed_over(self, features: Sequence[Any]) -> None:
        """A request with these `MultiModalFeatureSpec`s goes to the engine core: what
        `LruKeyReplicatedReceiverCache` does with them there."""
        with self._lock:
            named = [(feature.mm_hash or feature.identifier, feature) for feature in features]
            for mm_hash, _ in named:
                self._cache.touch(mm_hash)
            for mm_hash, feature in named:
                waiting = self._waiting.pop(mm_hash, None)
                if feature.data is None or waiting is None:
                    self._cache.touch(mm_hash)
                else:
                    self._cache.pop(mm_hash, None)
                    self.cache_if_fits(self._cache, mm_hash, waiting[1])

    def clear_cache(self) -> None:
        with self._lock:
            super().clear_cache()
        self._hits = self._total = 0
        self._last = CacheInfo(hits=0, total=0)

    def invalidate(self, mm_hash: str) -> None:
        with self._lock:
            super().invalidate(mm_hash)

    def make_stats(self, *, delta: bool = False) -> CacheInfo:
        info, last = CacheInfo(self._hits, self._total), self._last
        if delta:
            self._last = info
        return info - last if delta else info

    def _look_up(self, mm_hash: str) -> tuple[Any, Any] | None:
        """(item to send, or None where the engine core has it; prompt updates)."""
        with self._lock:
            if mm_hash in self._cache:  # past LRUCache's own, which would change the order
                return None, Cache.__getitem__(self._cache, mm_hash).prompt_updates
            reference, kept = self._waiting.get(mm_hash, (None, None))
        item = reference and reference()
        return None if item is None or kept is None else (item, kept.prompt_updates)

    def _promised(self) -> dict[str, Any]:
        return self._found.__dict__

    def _forget(self, mm_hash: str) -> Callable[[Any], None]:
        """For an item that no request holds any more."""
        waiting = self._waiting

        def forget(reference: Any) -> None:
            if waiting.get(mm_hash, (None,))[0] is reference:
                waiting.pop(mm_hash, None)

        return forget


def count_handovers(original: Callable[..., Any], vllm_config: Any) -> Any:
    """Wraps `processor_cache_from_config`, as the renderer uses it."""
    cache = original(vllm_config)
    if type(cache) is LruKeyReplicatedSenderCache:
        return SentPictures(vllm_config.model_config)
    return cache


def connect(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Wraps `LLMEngine.__init__` and `AsyncLLM.__init__`."""
    original(self, *args, **kwargs)
    self.output_processor.adaptvis_sent = self.renderer.mm_processor_cache


def hand_over(
    original: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """Wraps `OutputProcessor.add_request`: the engine core's is the next thing that is called,
    and nothing refuses the request in between. Its maps are expected from now on."""
    original(self, request, *args, **kwargs)
    state = self.request_states.get(request.request_id)
    if state is not None:
        state.adaptvis_maps = collected(request)
    sent = getattr(self, "adaptvis_sent", None)
    if request.mm_features and isinstance(sent, SentPictures):
        sent.handed_over(request.mm_features)
