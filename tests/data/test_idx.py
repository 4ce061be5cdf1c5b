from __future__ import annotations

import contextlib
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbam.data.idx import read_idx
from cbam.errors import CBAMError
from tests.data.idx_files import idx_bytes

ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_and_gzip_files_are_read(tmp_path, pack):
    (tmp_path / "file").write_bytes(pack(idx_bytes(ARRAY)))
    assert np.array_equal(read_idx(tmp_path / "file", 3).numpy(), ARRAY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing, expected 00 00 08 03"),
        (b"<html>not found</html>", "no idx file of unsigned bytes with 3"),
        (idx_bytes(ARRAY.reshape(-1)), "starts with 00 00 08 01, expected 00 00 08 03"),
        (b"\0\0\x0d\x03" + idx_bytes(ARRAY)[4:], "starts with 00 00 0d 03"),
        (idx_bytes(ARRAY)[:9], "truncated: it ends within its header"),
        (idx_bytes(ARRAY)[:-1], "truncated: its header promises 24 bytes .* it holds only 23"),
        (idx_bytes(ARRAY) + b"x", "damaged: its header promises 24 bytes .* it holds more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "claims the shape"),
        (b"\0\0\x08\x03" + b"\0" * 12, "claims the shape"),
        (gzip.compress(idx_bytes(ARRAY), mtime=0)[:-6], "truncated or damaged"),
        (gzip.compress(idx_bytes(ARRAY), mtime=0)[:10] + b"\xff" * 30, "truncated or damaged"),
    ],
)
def test_a_file_that_is_wrong_says_how(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CBAMError, match=message) as caught:
        read_idx(tmp_path / "file", 3)
    assert str(tmp_path / "file") in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CBAMError, match="cannot be read"):
        read_idx(tmp_path / "none", 3)


@given(st.sampled_from([b"", b"\0\0\x08\x01", b"\0\0\x08\x01\0\0\0"]), st.binary(max_size=60), st.booleans())
def test_no_content_raises_anything_else(tmp_path_factory, start, content, zipped):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(gzip.compress(start + content, mtime=0) if zipped else start + content)
    with contextlib.suppress(CBAMError):
        assert read_idx(path, 1).ndim == 1
