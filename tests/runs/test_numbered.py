"""A run that was given no folder resumes its own, and never mixes with another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cbam.errors import CBAMError
from cbam.runs.config import RunConfig, option
from cbam.runs.folder import RunFolder
from cbam.runs.numbered import with_folder


@dataclass(frozen=True)
class Config(RunConfig):
    epochs: int = 10
    workers: int = option(0, affects_result=False)
    output: Path | None = option(None, affects_result=False)
    overwrite: bool = option(False, affects_result=False)

    @property
    def folder(self):
        return self.output or Path("runs/digits")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(**options):
    """Begin a run, or resume it; return its folder's name."""
    config = with_folder(Config(**options))
    folder = RunFolder(config.folder, overwrite=config.overwrite)
    folder.check_settings(config.resolved(), Config)
    folder.make_room()
    with folder.locked():
        folder.open(config.resolved(), {})
        (folder.path / f"epochs-{config.epochs}").touch()
    return config.folder.name


def test_the_same_run_resumes_and_another_gets_the_next_number():
    assert [run(), run(epochs=3), run(epochs=5)] == ["digits", "digits-2", "digits-3"]
    assert [run(epochs=5), run(), run(epochs=3, workers=2)] == ["digits-3", "digits", "digits-2"]


def test_numbers_of_others_and_of_longer_names_do_not_count():
    for name in ("digits-resnet20", "digits-old", "digits-02"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "notes.txt").touch()
    assert run() == "digits"
    Path("runs/digits-4").mkdir()
    Path("runs/digits-4/notes.txt").touch()
    assert run(epochs=3) == "digits-5", "what is no run is left alone too"


def test_several_processes_of_a_run_find_one_folder():
    """The second looks while the first has made the folder and written nothing yet."""
    run()
    first = with_folder(Config(epochs=3)).folder
    with RunFolder(first).locked():
        assert with_folder(Config(epochs=3)).folder == first == Path("runs/digits-2")


def test_overwriting_moves_the_old_run_aside():
    run(epochs=3)
    assert run(epochs=3, overwrite=True) == "digits"
    assert run(epochs=4, output=Path("runs/digits"), overwrite=True) == "digits"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits", "digits-old", "digits-old-2"]
    assert Path("runs/digits/epochs-4").exists()
    assert not Path("runs/digits/epochs-3").exists()
    assert Path("runs/digits-old/epochs-3").exists()
    assert Path("runs/digits-old-2/epochs-3").exists()


def test_a_folder_that_is_written_or_holds_no_run_is_not_moved():
    run()
    other = RunFolder(Path("runs/digits"), overwrite=True)
    other.check_settings(Config(epochs=3).resolved(), Config)
    Path("papers").mkdir()
    Path("papers/thesis.tex").touch()
    with pytest.raises(CBAMError, match="holds no run"):
        RunFolder(Path("papers"), overwrite=True).check_settings(Config().resolved(), Config)
    assert RunFolder(Path("papers"), overwrite=True).make_room() is None


def test_the_refusal_names_both_ways():
    run(output=Path("mine"))
    with pytest.raises(
        CBAMError, match=r"epochs: 10 there, 3 now\). Give another --output, --overwrite to move it"
    ):
        run(epochs=3, output=Path("mine"))


def test_other_images_can_be_overwritten_too():
    run()
    folder = RunFolder(Path("runs/digits"))
    folder.write_json("data.json", {"train": "abc"})
    with pytest.raises(CBAMError, match="--overwrite to move it aside"):
        folder.check_data({"train": "xyz"})
    RunFolder(Path("runs/digits"), overwrite=True).check_data({"train": "xyz"})
