"""`cbam shards`, as it is typed."""

import pytest

from cbam.cli.main import main


def test_only_what_exists_can_be_done_with_bad_images(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["shards", str(tmp_path), str(tmp_path / "out"), "--bad-images", "foo"])
    assert stopped.value.code == 2
    assert "invalid choice 'foo' for argument '--bad-images'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_each_example_has_a_line_of_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["shards", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "Example: cbam shards photos photos-shards --per-shard 1000" in lines
    assert "cbam compare --data shards:photos-shards" in lines
