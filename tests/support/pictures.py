"""One scene as a file of every kind that people have, and files that are no pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).parents[2]
# Pictures of one's own for the table; the answers to them are compared, not judged.
MORE = Path(os.environ.get("ADAPTVIS_TEST_PICTURES", ROOT.parent / "shared" / "cases" / "pics"))
SCENE = ROOT / "data" / "spatial" / "images" / "plain" / "000.png"
QUESTION = (
    "Where is the table in relation to the bowl? Answer with left, right, on or under."  # left
)
ORIENTATION = 0x0112
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
0 0 64 64 rectfill
showpage
"""


def make_pictures() -> dict[str, bytes]:
    """Name -> file. "bad-" names are refused everywhere."""
    scene = Image.open(SCENE).convert("RGB").crop((0, 0, 128, 104))
    upright = [_turned(scene, number) for number in range(1, 9)]
    other = Image.new("RGB", scene.size, "red")
    grey = scene.convert("L")
    seen = _seen_through(scene)
    deep = np.asarray(grey, np.uint16) * 257
    files = {
        "rgb.png": _file(scene, "PNG"),
        "rgb.jpg": _file(scene, "JPEG", quality=95),
        "rgb.bmp": _file(scene, "BMP"),
        "rgb.gif": _file(scene, "GIF"),
        "rgb.webp": _file(scene, "WEBP", lossless=True),
        "rgb.tif": _file(scene, "TIFF"),
        "rgb.ppm": _file(scene, "PPM"),
        "rgb.tga": _file(scene, "TGA"),
        "rgb.jp2": _file(scene, "JPEG2000"),
        "p.png": _file(scene.quantize(64), "PNG"),
        "l.png": _file(grey, "PNG"),
        "1.png": _file(grey.convert("1"), "PNG"),
        "1.tif": _file(grey.convert("1"), "TIFF"),
        "i16.png": _file(Image.fromarray(deep), "PNG"),
        "i16.tif": _file(Image.fromarray(deep), "TIFF"),
        "i32.tif": _file(Image.fromarray(np.asarray(grey, np.int32)), "TIFF"),
        "f32.tif": _file(Image.fromarray(np.asarray(grey, np.float32)), "TIFF"),
        "cmyk.jpg": _file(scene.convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": _file(scene.convert("CMYK"), "TIFF"),
        "ycbcr.tif": _file(scene.convert("YCbCr"), "TIFF"),
        "lab.tif": _file(scene.convert("LAB"), "TIFF"),
        "rgba.png": _file(seen, "PNG"),
        "rgba.webp": _file(seen, "WEBP", lossless=True),
        "rgba.tif": _file(seen, "TIFF"),
        "rgba.tga": _file(seen, "TGA"),
        "la.png": _file(seen.convert("LA"), "PNG"),
        "p-trans.png": _file(_palette(seen), "PNG", transparency=0),
        "p-alphas.png": _file(seen.quantize(64), "PNG"),
        "l-trans.png": _file(grey, "PNG", transparency=grey.getpixel((0, 0))),
        "rgb-trans.png": _file(scene, "PNG", transparency=scene.getpixel((0, 0))),
        "trans.gif": _file(_palette(seen), "GIF", transparency=0),
        "animated.gif": _file(scene, "GIF", save_all=True, append_images=[other]),
        "animated.png": _file(scene, "PNG", save_all=True, append_images=[other]),
        "animated.webp": _file(
            scene, "WEBP", save_all=True, append_images=[other], lossless=True, duration=100
        ),
        "several.mpo": _file(scene, "MPO", save_all=True, append_images=[other]),
        "several.tif": _file(scene.copy(), "TIFF", save_all=True, append_images=[other.copy()]),
        "exif6.png": _file(upright[5], "PNG", exif=_exif(6)),
        "exif6.webp": _file(upright[5], "WEBP", lossless=True, exif=_exif(6)),
        "exif6.tif": _file(upright[5], "TIFF", exif=_exif(6)),
        "exif6-rgba.png": _file(_turned(seen, 6), "PNG", exif=_exif(6)),
        "exif6-p.png": _file(upright[5].quantize(64), "PNG", exif=_exif(6)),
        "exif-broken.jpg": _file(scene, "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    }
    for number, turned in enumerate(upright, 1):
        exif = _exif(number)
        files[f"exif{number}.jpg"] = _file(turned, "JPEG", quality=95, exif=exif)
    bad = {
        "bad-cut.jpg": files["rgb.jpg"][: len(files["rgb.jpg"]) // 2],
        "bad-cut-exif6.jpg": files["exif6.jpg"][: len(files["exif6.jpg"]) // 2],
        "bad-cut.png": files["rgb.png"][: len(files["rgb.png"]) // 2],
        "bad-head.png": files["rgb.png"][:30],
        "bad-chunk.png": files["rgb.png"].replace(b"IDAT", b"ID\0T"),
        "bad-eps.jpg": EPS,
        "bad-empty.png": b"",
        "bad-text.png": b"not a picture",
        "bad-svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    }
    more = sorted(MORE.iterdir()) if MORE.is_dir() else []
    return files | bad | {f"more/{path.name}": path.read_bytes() for path in more}


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA picture on white."""
    pixels = np.asarray(image, float)
    alpha = pixels[..., 3:] / 255
    laid = pixels[..., :3] * alpha + 255 * (1 - alpha)
    return Image.fromarray(laid.round().astype(np.uint8))


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """As a camera stores it with this orientation: `exif_transpose` gives the image."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turned = image.copy()
    turned.getexif()[ORIENTATION] = inverse
    turned = ImageOps.exif_transpose(turned)
    turned.info.pop("exif", None)
    return turned


def _seen_through(scene: Image.Image) -> Image.Image:
    """Its wall transparent, with black pixels there; its lower half half transparent."""
    pixels = np.asarray(scene.convert("RGBA")).copy()
    wall = (pixels[..., :3] == pixels[0, 0, :3]).all(-1)
    pixels[wall] = 0
    half = pixels[52:]
    half[..., 3] = np.minimum(half[..., 3], 128)
    return Image.fromarray(pixels)


def _palette(image: Image.Image) -> Image.Image:
    """Colour 0, black, where it was transparent."""
    colours = image.convert("RGB").quantize(63)
    indices = np.asarray(colours) + 1
    indices[np.asarray(image)[..., 3] == 0] = 0
    palette = Image.fromarray(indices.astype(np.uint8), "P")
    palette.putpalette(b"\0\0\0" + bytes(colours.getpalette() or ())[: 63 * 3])
    return palette
