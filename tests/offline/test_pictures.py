"""The same picture everywhere: every kind of file, through every entrance, one answer.

`pytest tests/offline/test_pictures.py -k same -s` prints the table.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.engine import close, generate, make_llm, sampling
from support.http_server import healthy, post, running
from support.picture_hosts import PICTURE, TROUBLE, hosts
from support.pictures import QUESTION, ROOT, make_pictures, on_white
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.multimodal.media import MediaConnector

from adaptvis_vllm import AdaptVis
from adaptvis_vllm.batch import Settings, run
from adaptvis_vllm.batch.openai import OpenAIFormat
from adaptvis_vllm.engine.admission import Refused
from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.files.lines import read_lines
from adaptvis_vllm.files.media import decode_video, fetch_image, load_image, load_video, pixels
from adaptvis_vllm.offline.runner import RowRunner
from adaptvis_vllm.plugin import register
from adaptvis_vllm.reference.model import ReferenceModel
from adaptvis_vllm.reference.rows import run as reference_rows

MODEL = ROOT / "models" / "spatial-llava"
STEERING = AdaptVis(0.5, 2.0, 0.9)
TOKENS = 4
# What the server gives a host: two tries, of two seconds and of eight.
PATIENCE = {"VLLM_IMAGE_FETCH_TIMEOUT": "2", "VLLM_MEDIA_FETCH_MAX_RETRIES": "2"}
Said = tuple[str, float] | None  # answer and confidence; None: refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, below pics/."""
    path = tmp_path_factory.mktemp("pictures")
    for name, data in make_pictures().items():
        file = path / "pics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def names(folder: Path) -> list[str]:
    pics = folder / "pics"
    return sorted(str(file.relative_to(pics)) for file in pics.rglob("*.*") if file.is_file())


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in PATIENCE.items():
            patched.setenv(name, value)
        options = ("--allowed-local-media-path", str(folder))
        with running(tmp_path_factory.mktemp("server"), MODEL, *options) as url:
            yield url


def row(name: str, image: Any) -> dict[str, Any]:
    more = {"max_tokens": TOKENS, "adaptvis": vars(STEERING)}
    return {"id": name, "image": image, "question": QUESTION, **more}


def chat(url: str, model: str) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": model, "messages": [{"role": "user", "content": parts}]}
    more = {"max_tokens": TOKENS, "temperature": 0, "vllm_xargs": STEERING.extra_args()}
    return {**body, **more}


def uri(path: Path, scheme: str = "data") -> str:
    return f"{scheme}:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def said_by_row(answered: dict[str, Any]) -> Said:
    if answered["error"] is not None:
        assert answered["text"] is None
        assert answered["error"].startswith("image: ")
        return None
    return answered["text"], answered["adaptvis"]["confidence"]


def said_by_body(status: int, body: Any) -> Said:
    if status == 200:
        return body["choices"][0]["message"]["content"], body["adaptvis"]["confidence"]
    assert 400 <= status < 500, body
    return None


@pytest.fixture(scope="module")
def table(folder: Path, names: list[str], server: str) -> dict[str, dict[str, Said]]:
    """Entrance -> picture -> what was said."""
    files = {name: folder / "pics" / name for name in names}
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row(n, f"pics/{n}")) + "\n" for n in names))
    return {
        **in_process(folder, files, path),
        **in_batches(folder, files, path),
        "reference": {
            said["id"]: said_by_row(said)
            for said in reference_rows(ReferenceModel(MODEL), read_lines(path), folder)
        },
        "serve, data:": served(server, {n: uri(f) for n, f in files.items()}),
        "serve, file://": served(server, {n: f.as_uri() for n, f in files.items()}),
    }


def in_process(folder: Path, files: dict[str, Path], path: Path) -> dict[str, dict[str, Said]]:
    """Rows with paths, `DATA:` URIs and bytes; `eval`; pictures of Pillow."""
    llm = make_llm(MODEL)
    out: dict[str, dict[str, Said]] = {}
    try:
        for entrance, rows in {
            "generate": list(read_lines(path)),
            "rows, DATA:": [row(name, uri(file, "DATA")) for name, file in files.items()],
            "rows, bytes": [
                row(name, {"bytes": file.read_bytes(), "path": None})
                for name, file in files.items()
                if file.stat().st_size
            ],
            "rows, Pillow": [
                row(name, Image.open(file)) for name, file in files.items() if opens(file)
            ],
        }.items():
            answered = RowRunner(llm, folder).run(rows)
            out[entrance] = {said["id"]: said_by_row(said) for said in answered}
        good = [name for name, said in out["generate"].items() if said is not None]
        questions = [Question(n, (files[n],), QUESTION, "left") for n in good]
        answers = answer(llm, questions, [STEERING], max_tokens=TOKENS)
        out["eval"] = {
            name: (given.text, given.report["confidence"])
            for name, (given,) in zip(good, answers, strict=True)
        }
        # What `open_image` refuses Pillow would open, and run Ghostscript.
        prompt = f"USER: <image>\n{QUESTION} ASSISTANT:"
        out["LLM.generate"] = {}
        for name, file in files.items():
            if opens(file):
                asked = {"prompt": prompt, "multi_modal_data": {"image": Image.open(file)}}
                out["LLM.generate"][name] = by_llm(llm, asked)
    finally:
        close(llm)
    return out


def opens(file: Path) -> bool:
    """Whether a user of Pillow can hand it to vLLM."""
    from vllm.multimodal.image import open_image

    try:
        open_image(file)
    except (OSError, SyntaxError):
        return False
    return True


def by_llm(llm: Any, asked: dict[str, Any]) -> Said:
    try:
        (output,) = generate(llm, [asked], sampling(STEERING, max_tokens=TOKENS))
    except (OSError, ValueError):
        return None
    return output.outputs[0].text, output.adaptvis["confidence"]


def in_batches(folder: Path, files: dict[str, Path], path: Path) -> dict[str, dict[str, Said]]:
    """Rows of `adaptvis batch` in both of its formats."""
    engine = {
        "model": str(MODEL),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 64 * 2**20,
        "max_num_seqs": 8,
        "block_size": 32,
        "allowed_local_media_path": str(folder),
    }
    out: dict[str, dict[str, Said]] = {}
    run(path, folder / "out.jsonl", Settings(engine, workers=0))
    out["batch"] = {r["id"]: said_by_row(r) for r in read_lines(folder / "out.jsonl")}
    lines = [
        {"custom_id": f"{kind} {name}", "method": "POST", "url": "/v1/chat/completions"}
        | {"body": chat(url, str(MODEL))}
        for name, file in files.items()
        for kind, url in (("data:", uri(file)), ("file://", file.as_uri()))
    ]
    asked = folder / "openai.jsonl"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(asked, folder / "openai-out.jsonl", Settings(engine, workers=0))
    for answered in read_lines(folder / "openai-out.jsonl"):
        kind, _, name = answered["custom_id"].partition(" ")
        response = answered["response"]
        said = said_by_body(response["status_code"], response["body"])
        out.setdefault(f"batch, OpenAI, {kind}", {})[name] = said
    return out


def served(server: str, urls: dict[str, str]) -> dict[str, Said]:
    def ask(url: str) -> Said:
        given = post(server, "/v1/chat/completions", chat(url, "tiny"))
        return said_by_body(given.status_code, given.json())

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(urls, pool.map(ask, urls.values()), strict=True))


def test_a_picture_is_the_same_everywhere(
    table: dict[str, dict[str, Said]], names: list[str]
) -> None:
    """One answer and one confidence a picture, or no answer anywhere."""
    print(f"\n{len(table)} entrances: {'; '.join(table)}. Answer, confidence, spread of those:")
    wrong = []
    for name in names:
        given = {entrance: said[name] for entrance, said in table.items() if name in said}
        first = given["generate"]
        if first is None:
            same = not any(given.values())
            print(f"{name:<22} refused{'':<25} {len(given)} entrances")
        else:
            answers = {said[0] for said in given.values() if said}
            values = [said[1] for said in given.values() if said]
            spread = max(values) - min(values)
            same = len(answers) == 1 and None not in given.values() and spread <= 1e-5
            shown = f"{first[0]:<8} {first[1]:.6f}   spread {spread:.0e}"
            print(f"{name:<22} {shown}   {len(given)} entrances")
        if not same:
            wrong.append({name: given})
        if "/" not in name:
            assert (first is None) == name.startswith("bad-"), name
    assert not wrong, "\n".join(map(repr, wrong))


def test_what_a_picture_becomes(folder: Path, names: list[str]) -> None:
    """Against the scene itself: upright, on white, the first frame; else Pillow's conversion."""
    pics = folder / "pics"
    scene, see_through = Image.open(pics / "rgb.png"), Image.open(pics / "rgba.png")
    white = on_white(see_through)
    wall = scene.copy()  # what is transparent altogether, on white
    wall.paste("white", mask=see_through.getchannel("A").point(lambda alpha: 255 * (alpha == 0)))
    grey = scene.convert("L").convert("RGB")
    assert min(difference(scene, white), difference(wall, white), difference(scene, wall)) > 15
    expected = [
        (("rgba", "p-alphas"), white),
        (("la.png",), white.convert("L").convert("RGB")),
        (("p-trans", "trans.gif"), wall),
        (("l-trans",), wall.convert("L").convert("RGB")),
        (("l.png", "i32", "f32"), grey),
        (("rgb", "exif", "several", "animated", "cmyk", "p.png", "lab", "ycbcr"), scene),
        (("1.",), Image.open(pics / "1.png").convert("RGB")),
        (("i16",), Image.open(pics / "i16.png").convert("RGB")),
    ]
    for name in names:
        if "/" in name or name.startswith("bad-"):
            continue
        picture = pixels(load_image(f"pics/{name}", folder, "image"))
        assert (picture.mode, picture.size) == ("RGB", scene.size), name
        became = next(p for words, p in expected if any(word in name for word in words))
        assert difference(picture, became) < 2, name


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean over pixels and channels, of 255."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def test_options_of_the_engine(folder: Path) -> None:
    """--media-io-kwargs holds for rows of both formats, a request's own over it."""
    black = {"rgba_background_color": [0, 0, 0]}
    file = folder / "pics" / "rgba.png"
    llm = make_llm(MODEL, media_io_kwargs={"image": black}, allowed_local_media_path=str(folder))
    try:
        rows = [row("rgba", "pics/rgba.png"), row("black", laid_on(file, "black"))]
        mine, laid = RowRunner(llm, folder).run(rows)
        assert mine["adaptvis"] == laid["adaptvis"]
        form = OpenAIFormat(llm)
        line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions"}
        red = {"image": {"rgba_background_color": [255, 0, 0]}}
        for own, colour in ((None, "black"), (red, "red")):
            body = chat(file.as_uri(), str(MODEL)) | {"media_io_kwargs": own}
            part, _ = form.prepare(line | {"body": body}).messages[0]["content"]
            assert difference(pixels(part["image_pil"]), laid_on(file, colour)) == 0
    finally:
        close(llm)


def laid_on(file: Path, colour: str) -> Image.Image:
    picture = Image.open(file)
    out = Image.new("RGB", picture.size, colour)
    out.paste(picture, mask=picture)
    return out


def test_frames_are_pictures(folder: Path) -> None:
    """A list of frames: upright and on white, as the pictures are."""
    names = ["rgb.png", "exif6.jpg", "rgba.png", "exif6-rgba.png", "p-trans.png", "cmyk.jpg"]
    pictures = [pixels(load_image(f"pics/{name}", folder, "image")) for name in names]
    opened = [Image.open(folder / "pics" / name) for name in names]
    for sources in ([f"pics/{name}" for name in names], opened):
        frames, _ = decode_video(load_video(sources, folder, "video"), None)
        for frame, picture in zip(frames, pictures, strict=True):
            assert difference(Image.fromarray(frame), picture) == 0
    options = {"rgba_background_color": [0, 0, 0]}
    uri = load_video(["pics/rgba.png"], folder, "video", options)
    (frame,), _ = decode_video(uri, None, {"image": options})
    assert difference(Image.fromarray(frame), laid_on(folder / "pics" / "rgba.png", "black")) == 0


def test_ghostscript_never_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor anything else that Pillow would start for a file."""
    started: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **_: started.append(a))
    name = "pics/bad-eps.jpg"
    for source in (
        name,
        (folder / name).read_bytes(),
        uri(folder / name),
        Image.open(folder / name),
    ):
        with pytest.raises(ValueError, match=r"^image: .* is no readable image: .*(format|EPS)"):
            load_image(source, folder, "image")
    with pytest.raises(ValueError, match=r"^video: .* is no readable image"):
        load_video([name], folder, "video")
    assert not started


@pytest.fixture(scope="module")
def urls(folder: Path) -> Iterator[dict[str, str]]:
    with hosts((folder / "pics" / "rgb.png").read_bytes()) as found:
        yield found


def test_a_host_that_does_not_answer_is_the_requests_fault(
    server: str, urls: dict[str, str]
) -> None:
    """HTTP 4xx that names the picture, for each in the time that the environment gives it."""
    expected = TROUBLE | {"no host": 422, "no name": 422, PICTURE: 200}
    with ThreadPoolExecutor(len(expected)) as pool:
        asked = [chat(urls[what], "tiny") for what in expected]
        given = list(pool.map(lambda body: post(server, "/v1/chat/completions", body), asked))
    for (what, status), answered in zip(expected.items(), given, strict=True):
        print(f"{what:<12} HTTP {answered.status_code}   {answered.text[:150]}")
        assert answered.status_code == status, (what, answered.text)
        if status == 200:
            continue
        error = answered.json()["error"]
        assert error["param"] == "image_url"
        if status == 422:
            assert f"image_url '{urls[what]}' cannot be loaded: " in error["message"]
    assert healthy(server)


def test_other_routes_say_so_too(server: str, urls: dict[str, str]) -> None:
    url = urls["no host"]
    source = {"type": "url", "url": url}
    parts: dict[str, list[Any]] = {
        "/v1/responses": [{"type": "input_image", "image_url": url}],
        "/v1/messages": [{"type": "image", "source": source}],
    }
    bodies: dict[str, dict[str, Any]] = {
        "/adaptvis/sweep": {"question": QUESTION, "image": url, "alphas": [2.0]},
        "/v1/responses": {"input": [{"role": "user", "content": parts["/v1/responses"]}]},
        "/v1/messages": {"messages": [{"role": "user", "content": parts["/v1/messages"]}]},
        "/tokenize": {"messages": chat(url, "tiny")["messages"]},
    }
    with ThreadPoolExecutor(len(bodies)) as pool:
        more = {"model": "tiny", "max_tokens": 2}
        given = pool.map(lambda path: post(server, path, more | bodies[path]), bodies)
    for path, answered in zip(bodies, given, strict=True):
        assert answered.status_code == 422, (path, answered.text)
        assert url in answered.text


@pytest.mark.parametrize(
    "url",
    [
        "\ud800",
        "http://127.0.0.1/\ud800.png",
        "http://\ud800/",
        "data:image/png;base64,\ud800",
        "DATA:image/png;base64,",
        "file:///\ud800",
        "file:///etc/hostname",
        "file://absent.png",
        "http://",
        "http://[",
        "http://127.0.0.1:99999/",
        "ftp://127.0.0.1/picture.png",
        "\x00",
    ],
    ids=ascii,
)
def test_a_url_that_is_none(server: str, folder: Path, url: str) -> None:
    answered = post(server, "/v1/chat/completions", chat(url, "tiny"))
    assert 400 <= answered.status_code < 500, answered.text
    assert answered.json()["error"]["param"] == "image_url"
    with pytest.raises(ValueError, match=r"^image: "):
        load_image(url, folder, "image")


def test_files_that_are_not_there(server: str, folder: Path) -> None:
    for name in ("absent.png", "", "pics", "pics/bad-empty.png"):
        answered = post(server, "/v1/chat/completions", chat((folder / name).as_uri(), "tiny"))
        assert answered.status_code == 400, answered.text
        with pytest.raises(ValueError, match=r"^image"):
            load_image(name, folder, "image")


def test_downloads_of_rows(
    urls: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server's, with an event loop around them and without."""
    register()  # as with an engine
    upright = load_image("pics/rgb.png", folder, "image")

    async def inside(url: str) -> Any:
        return load_image(url, folder, "image")

    assert load_image(urls[PICTURE].replace("http", "HTTP", 1), folder, "image") == upright
    assert fetch_image(urls[PICTURE]) == upright
    assert asyncio.run(inside(urls[PICTURE])) == upright
    (folder / "a b.png").write_bytes((folder / "pics" / "rgb.png").read_bytes())
    assert load_image((folder / "a b.png").as_uri(), folder, "image") == upright

    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "1")
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    bad = sorted(set(urls) - {PICTURE})

    def refused(what: str) -> tuple[str, str]:
        with pytest.raises(ValueError, match=r"^image: ") as mine:
            load_image(urls[what], folder, "image")
        with pytest.raises(ValueError, match=r"^image_url ") as openai:
            fetch_image(urls[what])
        return str(mine.value), str(openai.value)

    with ThreadPoolExecutor(len(bad)) as pool:
        for what, said in zip(bad, pool.map(refused, bad), strict=True):
            assert all(f"'{urls[what]}'" in sentence for sentence in said), said


def test_videos_of_requests(
    urls: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM's chat asks its connector for them."""
    register()
    monkeypatch.setenv("VLLM_VIDEO_FETCH_TIMEOUT", "1")
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")

    async def fetch(url: str) -> Any:
        connector = MediaConnector(connection=HTTPConnection())
        try:
            return await connector.fetch_video_async(video_url=url, video_processor=None)
        finally:
            await (await connector.connection.get_async_client()).close()

    frames, _ = asyncio.run(fetch(load_video(["pics/rgb.png"], folder, "video")))
    assert len(frames) == 1
    for what in ("/silent", "/status/500", "no host"):
        with pytest.raises(VLLMUnprocessableEntityError, match=r"^video_url '.*cannot be loaded"):
            asyncio.run(fetch(urls[what]))
    for url in (urls["/text"], "data:video/mp4;base64,Pw=="):
        with pytest.raises(Refused, match=r"^video_url "):
            asyncio.run(fetch(url))
