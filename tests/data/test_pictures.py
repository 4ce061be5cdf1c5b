from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data

from cbam.data.pictures import MAX_ELONGATION, BadImage, check_image, open_image
from tests.data.pictures_on_disk import photo, truncate

PHOTO = Image.fromarray(photo("cat")).resize((120, 80))


def pixels(image):
    return np.asarray(image).astype(int)


def save(path, image=PHOTO, **options):
    image.save(path, **options)
    return path


def problem(function, path, **kwargs):
    try:
        function(path, **kwargs)
    except BadImage as error:
        return error.kind
    return None


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".ppm"])
def test_each_format_opens_in_rgb(tmp_path, suffix):
    image = open_image(save(tmp_path / f"photo{suffix}"))
    assert (image.mode, image.size) == ("RGB", (120, 80))
    assert np.abs(pixels(image) - pixels(PHOTO)).mean() < 8
    check_image(tmp_path / f"photo{suffix}")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_the_exif_data_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(pixels(open_image(path)), pixels(expected))
    assert open_image(path).size == ((80, 120) if orientation >= 5 else (120, 80))


@pytest.mark.parametrize("exif", [b"MM\0c nonsense", b"Exif\0\0MM\0*\0\0\0"])  # a SyntaxError, a struct.error
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_damaged_exif_data_do_not_spoil_the_picture(tmp_path, suffix, exif):
    path = save(tmp_path / f"photo{suffix}", exif=exif)
    with Image.open(path) as image, pytest.raises((SyntaxError, struct.error)):
        image.getexif()
    assert open_image(path).size == (120, 80)


def test_cmyk_has_the_colours_of_rgb(tmp_path):
    path = save(tmp_path / "print.jpg", PHOTO.convert("CMYK"), quality=95)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(pixels(open_image(path)) - pixels(PHOTO)).mean() < 8
    check_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path, suffix):
    deep = data.camera()[::4, ::4].astype(np.uint16) * 200 + 13
    path = save(tmp_path / f"deep{suffix}", Image.fromarray(deep))
    assert np.array_equal(pixels(open_image(path)), np.repeat((deep >> 8).astype(int)[..., None], 3, axis=2))
    check_image(path)


def test_grey_and_black_and_white_become_rgb(tmp_path):
    grey = PHOTO.convert("L")
    assert np.array_equal(pixels(open_image(save(tmp_path / "grey.png", grey)))[..., 1], pixels(grey))
    opened = open_image(save(tmp_path / "bw.png", PHOTO.convert("1")))
    assert set(np.unique(pixels(opened))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_lie_on_white(tmp_path, mode):
    path = tmp_path / "clear.png"
    if mode == "P":
        image = Image.new("P", (20, 10), 0)
        image.putpalette([0, 0, 0, 10, 200, 30])
        image.paste(1, (10, 0, 20, 10))
        image.save(path, transparency=b"\0\xff")
    elif mode == "RGB":
        image = Image.new("RGB", (20, 10), (0, 0, 0))
        image.paste((10, 200, 30), (10, 0, 20, 10))
        image.save(path, transparency=(0, 0, 0))
    else:
        image = Image.new(mode, (20, 10), 0)
        image.paste((10, 200, 30, 255) if mode == "RGBA" else (77, 255), (10, 0, 20, 10))
        image.save(path)
    assert Image.open(path).mode == mode
    shown = pixels(open_image(path))
    assert (shown[:, :10] == 255).all()
    assert (shown[:, 10:] == ([77] * 3 if mode == "LA" else [10, 200, 30])).all()


@pytest.mark.parametrize("values", [np.float32([[0.1, 0.9]]), np.int32([[-5, 7]]), np.int32([[70000, 7]])])
def test_pixels_without_a_known_scale_are_refused(tmp_path, values):
    path = save(tmp_path / "science.tif", Image.fromarray(values))
    assert problem(open_image, path) == problem(check_image, path) == "unknown brightness scale"


def test_a_wrong_suffix_does_not_matter(tmp_path):
    assert open_image(save(tmp_path / "photo.jpg", format="PNG")).size == (120, 80)


@pytest.mark.parametrize("format_", ["PDF", "ICO", "TGA", "PCX", "EPS", "JPEG2000"])
def test_formats_outside_the_list_are_not_parsed(tmp_path, format_):
    path = save(tmp_path / "photo.jpg", format=format_)
    assert problem(open_image, path) == problem(check_image, path) == "not a readable image"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", {}),
        (".jpg", {"progressive": True}),
        (".png", {}),
        (".webp", {}),
        (".gif", {}),
        (".bmp", {}),
        (".tif", {"compression": "tiff_lzw"}),
        (".ppm", {}),
    ],
)
def test_the_check_fails_exactly_where_opening_fails(tmp_path, suffix, options):
    whole = save(tmp_path / f"whole{suffix}", **options).read_bytes()
    path, failures = tmp_path / f"cut{suffix}", 0
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0):
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        found = problem(open_image, path)
        assert problem(check_image, path) == found
        failures += found in ("truncated or damaged", "not a readable image")
    assert 6 <= failures < 9


def test_a_flipped_byte_never_raises_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".gif", ".tif", ".webp"):
        whole = bytearray(save(tmp_path / f"whole{suffix}").read_bytes())
        for _ in range(40):
            broken = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                broken[place] = rng.integers(256)
            path = tmp_path / f"broken{suffix}"
            path.write_bytes(broken)
            assert (problem(open_image, path) is None) == (problem(check_image, path) is None)


def png_header(width, height):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 30_000])
def test_the_header_alone_gives_a_bomb_away(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    for function in (open_image, check_image):
        assert problem(function, path) == "too many pixels"


def test_the_cap_is_the_users(tmp_path):
    path = save(tmp_path / "photo.png")
    assert problem(open_image, path, max_pixels=120 * 80) is None
    assert problem(open_image, path, max_pixels=120 * 80 - 1) == "too many pixels"
    assert problem(check_image, path, max_pixels=120 * 80 - 1) == "too many pixels"


def test_a_hair_is_refused(tmp_path):
    good = save(tmp_path / "good.png", Image.new("RGB", (MAX_ELONGATION * 2, 2)))
    hair = save(tmp_path / "hair.png", Image.new("RGB", (MAX_ELONGATION * 2 + 1, 2)))
    assert problem(check_image, good) is None
    assert problem(check_image, hair) == problem(open_image, hair) == "too long and thin"


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    truncate(save(tmp_path / "cut.jpg"), 0.6)
    kinds = {path.stem: problem(open_image, path) for path in tmp_path.iterdir()}
    assert kinds == {
        "empty": "empty file",
        "text": "not a readable image",
        "folder": "not a regular file",
        "link": "broken link",
        "pipe": "not a regular file",
        "cut": "truncated or damaged",
    }
    assert problem(open_image, tmp_path / "never.jpg") == "missing file"


def test_the_error_names_the_file(tmp_path):
    with pytest.raises(BadImage, match=r"never\.jpg: missing file"):
        open_image(tmp_path / "never.jpg")


def test_tiny_images_are_fine(tmp_path):
    for suffix in (".jpg", ".png"):
        path = save(tmp_path / f"dot{suffix}", Image.new("RGB", (1, 1), "red"))
        check_image(path)
        assert open_image(path).size == (1, 1)
