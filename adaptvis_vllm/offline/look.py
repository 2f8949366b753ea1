"""The command `adaptvis look`: a picture, a question, and where the model looks, as one page."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from adaptvis_vllm.engine.compat import steerable_model
from adaptvis_vllm.engine.compilation import settle
from adaptvis_vllm.files.media import load_image, load_video, pixels
from adaptvis_vllm.files.urls import is_url
from adaptvis_vllm.look.page import Answer, Look, page, shown
from adaptvis_vllm.maps.maps import WHICH
from adaptvis_vllm.offline.runner import RowRunner
from adaptvis_vllm.options import (
    check_apart,
    engine_options,
    engine_parser,
    given_steering,
    make_llm,
    steering_options,
)
from adaptvis_vllm.steering.defaults import (
    MAX_CANDIDATES,
    MAX_MAP_BYTES,
    server_defaults,
    steered_config,
)
from adaptvis_vllm.steering.fields import ADAPTIVE_PRESETS
from adaptvis_vllm.steering.params import Off, SteeringParams

# Of the paper's code, where neither an option nor the engine's defaults say how to steer.
PRESET = next(iter(ADAPTIVE_PRESETS))
_LIMITS = (MAX_CANDIDATES, MAX_MAP_BYTES)  # of the engine
# Fields that say how to steer; the others say where, or what comes with the answer.
_HOW = ("mode", "alpha", "alpha_low", "alpha_high", "threshold", "preset", "candidates")


def main(argv: Sequence[str], doc: str) -> int:
    """0. ValueError, before the model is loaded where that can be, for what cannot be shown."""
    parser = engine_parser("adaptvis look", doc)
    _options(parser)
    engine_options(parser)
    steering_options(parser, f"steering; default: the engine's, else --preset {PRESET}")
    args = parser.parse_args(list(argv))
    _check_files(args)
    given = given_steering(args)
    operator = {name: given.pop(name) for name in _LIMITS if name in given}
    args.additional_config = steered_config(args.additional_config, operator)
    steering = chosen(given, server_defaults(args))
    settled = Namespace(**settle(vars(args)))
    row = _row(args)
    _check_takes_images(settled)
    look = replace(answered(make_llm(args), row, steering), facts=_facts(args, steering))
    args.output.write_text(page(look), encoding="utf-8")
    print(args.output)
    if args.png is not None:
        _write_png(args, row, look)
        print(args.png)
    return 0


def chosen(given: Mapping[str, Any], defaults: SteeringParams | None) -> SteeringParams:
    """The steering that is shown: as given, else the engine's, else the paper's.

    given: fields without prefix. ValueError for wrong ones, and for candidates, which do not steer.
    """
    fields = {"maps": "all", **given}
    has_default = defaults is not None and defaults.mode != "off"
    if not has_default and not any(name in given for name in _HOW):
        fields["preset"] = PRESET
    steering = SteeringParams.from_dict(fields, defaults=defaults)
    assert steering is not None  # maps are given
    if steering.mode == "candidates":
        raise ValueError("candidates do not steer: there is nothing to show after steering")
    if steering.maps is None:
        raise ValueError("--map-layers must name layers: without maps there is nothing to show")
    return steering


def answered(llm: Any, row: Mapping[str, Any], steering: SteeringParams) -> Look:
    """Both answers to a row, and its maps. ValueError, the row's, if it has no answer.

    llm: vLLM `LLM` (this package's plugin loaded). row: of `schema`, with a question.
    steering: with maps; of mode off there is one answer.
    """
    runner = RowRunner(llm, Path(), logprobs=1, maps=True)
    rows = [{**row, "adaptvis": Off()}] if steering.steers else []
    outputs = [output for _, output in runner.outputs([*rows, {**row, "adaptvis": steering}])]
    for output in outputs:
        if isinstance(output, str):
            raise ValueError(output)
    raw = runner.format.model_config.logprobs_mode == "raw_logprobs"
    answers = [_answer(output, raw) for output in outputs]
    images = [load_image(one, Path(), "image") for one in row.get("images", ())]
    pictures = [shown([pixels(image)]) for image in images]
    if "video" in row:
        frames, _ = runner.format.decode(row["video"])
        pictures.append(shown([Image.fromarray(frame) for frame in frames]))
    maps, report = outputs[-1].adaptvis_maps, outputs[-1].adaptvis
    return Look(
        question=row["question"],
        pictures=pictures,
        base=answers[0],
        steered=answers[1] if steering.steers else None,
        maps=maps,
        missing="" if maps else f"The answer came without maps: {report['reason']}.",
    )


def _answer(output: Any, raw: bool) -> Answer:
    """raw: whether log-probabilities are the model's own."""
    answer = output.outputs[0]
    confidence = None
    if raw and answer.logprobs:
        confidence = math.exp(max(entry.logprob for entry in answer.logprobs[0].values()))
    return Answer(answer.text, confidence, output.adaptvis)


def _options(parser: Any) -> None:
    add = parser.add_argument
    add("picture", nargs="*", help="path, URL or data: URI; one or more")
    add("question")
    add("--video", help="a video's path, URL or data: URI, instead of pictures or behind them")
    add("-o", "--output", type=Path, default=Path("look.html"), help="the page; default look.html")
    add("--png", type=Path, metavar="FILE", help="the (first) picture alone, with the map over it")
    add("--show", choices=WHICH, default="after", help="on the PNG; default after")
    add("--layer", type=int, help="on the PNG; default: the mean of all layers")
    add("--head", type=int, help="on the PNG; default: the mean of all heads")
    add("--max-tokens", type=int, default=32, help="of an answer; default 32")


def _check_files(args: Namespace) -> None:
    if not args.picture and args.video is None:
        raise ValueError('a picture is needed: adaptvis look PICTURE "QUESTION" --model M')
    sources = [source for source in (*args.picture, args.video) if source and not is_url(source)]
    for name, path in (("output", args.output), ("png", args.png)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise ValueError(f"--{name}: no such folder {path.parent}")
        if path.is_dir():
            raise ValueError(f"--{name}: {path} is a folder")
        check_apart(path, *map(Path, sources))


def _row(args: Namespace) -> dict[str, Any]:
    """As of `schema`, its pictures loaded; ValueError where one cannot be."""
    options = (args.media_io_kwargs or {}).get("image")
    row: dict[str, Any] = {"question": args.question, "max_tokens": args.max_tokens}
    if args.picture:
        row["images"] = [load_image(one, Path(), "PICTURE", options) for one in args.picture]
    if args.video is not None:
        row["video"] = load_video(args.video, Path(), "--video", options)
    return row


def _check_takes_images(args: Namespace) -> None:
    """ValueError for a model that takes none, before its weights are loaded."""
    if args.model is None:
        raise ValueError("--model is needed")
    from vllm.engine.arg_utils import EngineArgs

    if not steerable_model(EngineArgs.from_cli_args(args).create_model_config()):
        raise ValueError(f"the model {args.model} takes no images: there is nothing to look at")


def _facts(args: Namespace, steering: SteeringParams) -> dict[str, str]:
    if steering.mode == "adaptive":
        how = (
            f"AdaptVis: alpha {steering.alpha_low:g} below a confidence of "
            f"{steering.threshold:g}, else {steering.alpha_high:g}"
        )
    else:
        how = "none" if steering.alpha is None else f"ScalingVis: alpha {steering.alpha:g}"
    layers = f", layers {steering.layers}" if steering.layers else ""
    return {"model": str(args.model), "steering": how + layers}


def _write_png(args: Namespace, row: Mapping[str, Any], look: Look) -> None:
    if look.maps is None:
        raise ValueError(f"--png: {look.missing}")
    if "images" in row:
        picture = pixels(row["images"][0])
    else:
        raise ValueError("--png is of a picture; a video's frames are in the page")
    over = look.maps.overlay(picture, args.layer, which=args.show, head=args.head)
    over.save(args.png, "PNG")
