from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np
import pytest

from cbam.data.shards.headers import BLOCK, member_name, scan_tar
from cbam.errors import CBAMError
from tests.data.shards.tars import jpeg, member, samples, tar_bytes


def scan(content, classes=(), name="train-0.tar"):
    return scan_tar(
        io.BytesIO(content), name, len(content), {name: label for label, name in enumerate(classes)}
    )


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_rows_lead_to_the_images(format_):
    long = "d" * 90 + "/" + "n" * 60  # needs a header of its own in two of the formats
    content = tar_bytes(
        *samples([0, 1]),
        member(f"{long}.png", jpeg(5)),
        member(f"{long}.json", b'{"label": 7, "caption": "x"}'),
        format_=format_,
    )
    rows = scan(content)
    assert rows.labels.tolist() == [0, 1, 7]
    for block, size, number in zip(rows.blocks, rows.sizes, (0, 1, 5), strict=True):
        start = int(block) * BLOCK
        assert content[start : start + int(size)] == jpeg(number)
        assert member_name(content[start - BLOCK : start], int(size)) is not None
    assert (rows.blocks.dtype, rows.sizes.dtype, rows.labels.dtype) == (np.uint32, np.uint32, np.int32)


def test_class_names_and_further_files():
    content = tar_bytes(
        member("x", type=tarfile.DIRTYPE),
        member("._a.jpg", b"a Mac's own"),
        member("x/a.cls", b"dog\n"),
        member("x/a.jpg", jpeg(0)),
        member("x/a.txt", b"a caption"),
        member("x/b.seg.png", jpeg(1)),
        member("x/b.json", b'{"label": "cat"}'),
        member("x/b.cls", b"1"),
    )
    assert scan(content, ("cat", "dog")).labels.tolist() == [1, 1]


def without_end(content):
    return content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % BLOCK)


def damaged(content, position=2 * BLOCK):
    # The header of the second file; tarfile stops there without a word.
    start = content.index(b"0000.cls")
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


WHOLE = tar_bytes(*samples([0, 1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:900], "cut off"),
        (WHOLE[: WHOLE.index(b"0001.jpg") + 600], "cut off"),
        (without_end(WHOLE), "damaged or cut off at byte"),
        (damaged(WHOLE), "damaged or cut off at byte 1,"),
        (b"", "no tar file, or damaged"),
        (b"not a tar file" * 100, "no tar file, or damaged"),
        (bytes(10240), "no samples"),
        (gzip.compress(WHOLE), "no tar file, or damaged"),
        (tar_bytes(member("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "a.jpg is a link"),
        (tar_bytes(member("a.jpg", type=tarfile.LNKTYPE, linkname="b.jpg")), "a.jpg is a link"),
        (tar_bytes(member("a.jpg", type=tarfile.FIFOTYPE)), "no regular file"),
        (tar_bytes(member("/etc/a.jpg", jpeg(0))), "leads out of the archive"),
        (tar_bytes(member("x/../../a.jpg", jpeg(0))), "leads out of the archive"),
        (tar_bytes(member("a.jpg", jpeg(0))), "1 samples without a class: a. Expected KEY.cls"),
        (tar_bytes(member("a.cls", b"0")), "1 samples without an image: a"),
        (tar_bytes(member("a.jpg"), member("a.cls", b"0")), "0 bytes and cannot be an image"),
        (tar_bytes(*samples([0]), member("0000.png", jpeg(0))), "holds two images"),
        (tar_bytes(*samples([0, 1, 0])), "0000 do not lie next to each other"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.cls", b"-1")), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.cls", b"99999999999")), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.cls", "²".encode())), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.json", b"[" * 100_000)), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.json", b"5")), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.json", b'{"label": true}')), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.cls", b"1" * 5000)), "without a class"),
        (tar_bytes(member("a.jpg", jpeg(0)), member("a.json", bytes(2**20 + 1))), "too many for a label"),
        (tar_bytes(member("\x1b[31m.jpg", type=tarfile.SYMTYPE)), r"'\\x1b\[31m.jpg' is a link"),
    ],
)
def test_what_cannot_be_used_is_refused(content, message):
    with pytest.raises(CBAMError, match=message):
        scan(content)


def test_a_compressed_shard_is_told_from_a_damaged_one():
    with pytest.raises(CBAMError, match=r"is compressed .* Unpack it"):
        scan(gzip.compress(WHOLE), name="train-0.tar.gz")


def test_a_size_beyond_the_file_is_refused():
    info = tarfile.TarInfo("a.jpg")
    info.size = 10**9
    with pytest.raises(CBAMError, match=r"cut off: a\.jpg should end at byte 1,000,000,512 of"):
        scan(info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_raise_nothing_else(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        content = bytearray(WHOLE)
        for place in rng.integers(0, len(content), 8):
            content[place] = rng.integers(256)
        try:
            scan(bytes(content))
        except CBAMError:
            continue


def test_a_header_of_another_size_or_none_is_no_name():
    header = member("a.jpg", b"abc")[0].tobuf()[:BLOCK]
    assert member_name(header, 3) == "a.jpg"
    assert member_name(header, 4) is None
    assert member_name(header[:-1], 3) is None
    assert member_name(header[:10] + b"!" + header[11:], 3) is None  # its checksum is another
    assert member_name(member("a.jpg", type=tarfile.SYMTYPE)[0].tobuf()[:BLOCK], 0) is None
    for nonsense in (b"x" * BLOCK, bytes(BLOCK), b"\xff" * BLOCK):
        assert member_name(nonsense, 0) is None


def test_a_checksum_of_signed_bytes_is_one_too():
    header = bytearray(member("\u00e9.jpg", b"abc")[0].tobuf(tarfile.USTAR_FORMAT))
    assert member_name(bytes(header), 3) == "\u00e9.jpg"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in header)
    assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size == 3
    assert member_name(bytes(header), 3) == "\u00e9.jpg"
