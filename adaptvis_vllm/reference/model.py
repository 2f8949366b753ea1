"""AdaptVis in plain transformers: what steering means, one request at a time.

Slow and literal: adaptive steering runs the whole prompt twice, as the paper does. It is
the oracle of the tests, and serves any model that transformers loads for images and text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptvis_vllm._torchvision import ensure

ensure()

import torch  # noqa: E402  torchvision, which transformers imports, needs the line above
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
)

from adaptvis_vllm.maps.maps import Maps  # noqa: E402
from adaptvis_vllm.reference.attention import Steering, install  # noqa: E402
from adaptvis_vllm.reference.boxes import positions_in  # noqa: E402
from adaptvis_vllm.reference.inputs import Prompt, Video, prepare  # noqa: E402
from adaptvis_vllm.reference.literals import Literals  # noqa: E402
from adaptvis_vllm.reference.maps import Watch, maps_of  # noqa: E402
from adaptvis_vllm.reference.positions import (  # noqa: E402
    count_on_behind_videos,
    feature_positions,
    feature_tokens,
    steered_columns,
)
from adaptvis_vllm.steering import policy  # noqa: E402
from adaptvis_vllm.steering.fields import CONFIDENCES  # noqa: E402
from adaptvis_vllm.steering.first_tokens import first_tokens  # noqa: E402
from adaptvis_vllm.steering.params import SteeringParams  # noqa: E402
from adaptvis_vllm.steering.report import (  # noqa: E402
    MODE_CANDIDATES,
    MODE_OFF,
    Report,
    candidate,
    nothing_to_steer,
)


@dataclass(frozen=True)
class ReferenceOutput:
    """One greedy answer.

    prompt_token_ids: with image placeholders expanded. image_positions: those of the
    embeddings of images and video frames in it. token_ids: of the answer, with its
    end-of-sequence token if there is one. logprobs: of each of them, from the raw logits in
    float32. top_logprobs: per token the (token id, logprob) pairs asked for, best first.
    finish_reason: "stop" or "length". maps: None where none were asked for, or the prompt has no
    position of the span.
    """

    prompt_token_ids: list[int]
    image_positions: list[int]
    token_ids: list[int]
    text: str
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    finish_reason: str
    report: Report
    maps: Maps | None = field(default=None, compare=False)


class ReferenceModel:
    """A checkpoint folder of any image-text-to-text architecture of transformers."""

    def __init__(
        self,
        path: str | Path,
        *,
        dtype: torch.dtype | str = torch.float32,
        device: str | torch.device = "cpu",
        causal: bool = False,
    ) -> None:
        """ValueError where the architecture cannot be steered through transformers.

        causal: image tokens see no later ones, as with vLLM's CPU backend, where a model
            (Gemma-3) lets the tokens of an image see each other.
        """
        self.path = str(path)
        self.processor = AutoProcessor.from_pretrained(path)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        model: Any = AutoModelForImageTextToText
        self.model = model.from_pretrained(path, dtype=dtype, attn_implementation="eager")
        self.model.to(device).eval()
        count_on_behind_videos(self.model)
        if self.model.config.is_encoder_decoder:
            raise ValueError(f"{self.model.config.model_type} keeps images out of the prompt")
        self.device = torch.device(device)
        self.causal = causal
        self.feature_tokens = feature_tokens(self.model.config)
        self._literals = Literals(self.processor, self.model, self.feature_tokens)
        self.eos_token_ids = _eos_token_ids(self.model.generation_config, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        # Greedy: a checkpoint's own sampling defaults and penalties must not leak in.
        self.model.generation_config = GenerationConfig(
            pad_token_id=pad if pad is not None else next(iter(self.eos_token_ids), 0)
        )
        self._steering = Steering()
        self.layers = install(self.model.get_decoder(), self._steering)
        config = self.model.get_decoder().config
        self.num_layers, self.num_heads = config.num_hidden_layers, config.num_attention_heads

    def generate(
        self,
        prompt: Prompt,
        images: Sequence[Image.Image] = (),
        params: SteeringParams | None = None,
        *,
        videos: Sequence[Video] = (),
        max_tokens: int = 16,
        logprobs: int = 0,
        ignore_eos: bool = False,
    ) -> ReferenceOutput:
        """Answer one prompt greedily.

        prompt: text with the model's image placeholders, or chat messages, whose content
            is a text or a list of texts, {"type": "text", "text": ...} and {"type": "image"}.
        images: in the order of their placeholders, the first ones; more of them are text.
        videos: the same, each its frames, [T, H, W, 3] uint8, and their metadata.
        params: None is the same as mode "off".
        logprobs: how many of the best tokens to list at each step.
        ValueError for layers that the model does not have.

        Maps of a steered request cost a pass more, of the unsteered prompt.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        inputs = prepare(self.processor, prompt, images, videos, self._literals)
        inputs = inputs.to(self.device, dtype=self.model.dtype)
        if self.causal:
            inputs.pop("token_type_ids", None)
        ids: list[int] = inputs["input_ids"][0].tolist()
        found = feature_positions(self.feature_tokens, ids)
        every = steered_columns(found, "embeddings")
        positions = every
        if params is not None:
            meant = self._meant(params, found, prompt, images, videos)
            positions = steered_columns(meant, params.pictures["span"])

        def run(alpha: float | None, count: int) -> tuple[list[int], torch.Tensor]:
            with self._steered(params, alpha, positions, len(ids)):
                return self._greedy(inputs, count, ignore_eos)

        watch = self._watch(params, positions, len(ids))
        report = self._decide(params, positions, run, ignore_eos)
        with self._watched(watch):
            token_ids, logits = run(report.alpha, max_tokens)
        maps = None
        if watch is not None:
            unsteered = watch
            if report.steered:
                unsteered = Watch(watch.layers, positions, len(ids))
                with self._watched(unsteered):
                    run(None, 1)
            first, sizes = self._pictures(found, prompt, images, videos)
            maps = maps_of(unsteered, watch if report.steered else None, first, sizes)
        table = logits.float().log_softmax(-1)
        chosen = table[torch.arange(len(token_ids)), torch.tensor(token_ids)]
        top = table.topk(logprobs, dim=-1)
        stopped = not ignore_eos and token_ids[-1] in self.eos_token_ids
        return ReferenceOutput(
            prompt_token_ids=self._literals.restore(inputs["input_ids"][0]).tolist(),
            image_positions=every,
            token_ids=token_ids,
            text=self.tokenizer.decode(token_ids, skip_special_tokens=True),
            logprobs=chosen.tolist(),
            top_logprobs=[
                list(zip(i, v, strict=True))
                for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ],
            finish_reason="stop" if stopped else "length",
            report=report,
            maps=maps,
        )

    def _watch(
        self, params: SteeringParams | None, positions: list[int], length: int
    ) -> Watch | None:
        """What keeps the rows that a request asks for; ValueError for layers that are not there."""
        layers = params.map_layers(self.num_layers) if params else []
        if not (params and layers and positions):
            return None
        return Watch(layers, positions, length, params.maps_tokens)

    @contextmanager
    def _watched(self, watch: Watch | None) -> Iterator[None]:
        self._steering.watch = watch
        try:
            yield
        finally:
            self._steering.watch = None

    def _pictures(
        self,
        found: Mapping[str, Sequence[int]],
        prompt: Prompt,
        images: Sequence[Image.Image],
        videos: Sequence[Video],
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Of the prompt's pictures and videos the first position, and width and height."""
        owner, modalities = self._owners(prompt, images, videos)
        sizes = {
            "image": iter([image.size for image in images]),
            "video": iter([(frames.shape[2], frames.shape[1]) for frames, _ in videos]),
        }
        first = [steered_columns(found, "all")[owner.index(i)] for i in range(len(modalities))]
        return first, [next(sizes[modality]) for modality in modalities]

    def _owners(
        self, prompt: Prompt, images: Sequence[Image.Image], videos: Sequence[Video]
    ) -> tuple[list[int], list[str]]:
        """As of `Literals.owners`."""
        divided = prepare(self.processor, prompt, images, videos, self._literals, divided=True)
        return self._literals.owners(divided["input_ids"][0].tolist())

    def _meant(
        self,
        params: SteeringParams,
        found: Mapping[str, Sequence[int]],
        prompt: Prompt,
        images: Sequence[Image.Image],
        videos: Sequence[Video],
    ) -> Mapping[str, Sequence[int]]:
        """Positions by modality of the pictures, videos and boxes that `params` names."""
        chosen = {"image": params.pictures["images"], "video": params.pictures["videos"]}
        if chosen["image"] is chosen["video"] is params.boxes is None:
            return found
        params.check_prompt({"image": len(images), "video": len(videos)})
        owner, modalities = self._owners(prompt, images, videos)
        pictures: dict[str, list[list[int]]] = {"image": [], "video": []}
        for number, modality in enumerate(modalities):
            at = zip(steered_columns(found, "all"), owner, strict=True)
            pictures[modality].append([position for position, of in at if of == number])
        if params.boxes is not None:
            if not images:
                return {}
            number = params.picture(len(images))
            given = (self.path, pictures, images, videos)
            return {"image": positions_in(*given, number, params.boxes)}
        return {
            modality: [p for n in sorted(numbers) for p in pictures[modality][n]]
            for modality, numbers in chosen.items()
            if numbers is not None and pictures[modality]
        }

    def _decide(
        self, params: SteeringParams | None, positions: list[int], run: Any, ignore_eos: bool
    ) -> Report:
        """Settle alpha; adaptive steering runs the unsteered prompt for it, and candidates run it
        under each of their alphas too."""
        if params is None or params.mode == "off":
            return Report("off", reason=MODE_OFF)
        params.check_model(self.num_layers, self.num_heads)
        if not positions:
            return Report(params.mode, reason=nothing_to_steer(params.kind), candidates=[])
        if params.mode == "scaling":
            return Report(params.mode, alpha=params.alpha, steered=True)
        _, logits = run(None, 1)
        option = None
        if params.options is not None:
            # The logarithms of p(option): their softmax are the options' shares.
            own = first_tokens(self.tokenizer, params.options)
            p = logits[0].double().softmax(-1)
            logits = torch.stack([p[list(tokens)].sum() for tokens in own]).log()[None]
            option = params.options[int(logits.argmax())]
        if params.candidates is not None:
            measures = dict(zip(CONFIDENCES, policy.measures(logits)[:, 0].tolist(), strict=True))
            return Report(
                params.mode,
                measures[params.confidence],
                reason=MODE_CANDIDATES,
                candidates=[self._first(alpha, run, ignore_eos) for alpha in params.candidates],
                confidences=measures,
                option=option,
            )
        conf = policy.confidence(logits[:1], params.confidence)
        decimals = -1 if params.confidence_decimals is None else params.confidence_decimals
        low = policy.rounded(conf, torch.tensor([decimals])) < torch.tensor([params.threshold])
        alpha = params.alpha_low if low.item() else params.alpha_high
        return Report(params.mode, conf.item(), alpha, steered=True, option=option)

    def _first(self, alpha: float, run: Any, ignore_eos: bool) -> dict[str, Any]:
        """The best first token under alpha."""
        _, logits = run(alpha, 1)
        (token,), (probability,) = (values.tolist() for values in policy.best(logits))
        text = self.tokenizer.decode([token], skip_special_tokens=True)
        stop = not ignore_eos and token in self.eos_token_ids
        return candidate(alpha, token, text, probability, stop)

    @contextmanager
    def _steered(
        self,
        params: SteeringParams | None,
        alpha: float | None,
        positions: list[int],
        length: int,
    ) -> Iterator[None]:
        """Scale the last of `length` rows inside; nothing with alpha None."""
        if params is None or alpha is None:
            yield
            return
        columns = torch.zeros(length, dtype=torch.bool, device=self.device)
        columns[positions] = True
        masks = params.head_masks(self.num_layers)
        wanted = {layer: masks[layer] for layer in self.layers if layer in masks}
        self._steering.begin(alpha, params.rule, columns, wanted, params.steers_generated)
        try:
            yield
        finally:
            done = self._steering.end()
        if done != set(wanted):
            raise RuntimeError(f"layers {sorted(set(wanted) - done)} were not steered")

    @torch.inference_mode()
    def _greedy(
        self, inputs: Any, max_tokens: int, ignore_eos: bool
    ) -> tuple[list[int], torch.Tensor]:
        """Token ids [T], raw logits [T, V]."""
        out = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=None if ignore_eos else self.eos_token_ids or None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        return new.tolist(), torch.cat(out.logits).cpu()


def _eos_token_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """All that vLLM stops at: the generation config's and the tokenizer's."""
    ids = generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return sorted(set(ids))
