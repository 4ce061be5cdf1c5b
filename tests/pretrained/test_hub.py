"""Networks to the hub and back: real requests, to a server on this machine."""

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import cbam
from cbam import CBAMError, attach
from cbam.models import build_model
from tests.checkpoints import peers
from tests.pretrained.hub_server import TOKEN, served

hub_library = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

SIZE = (3, 32, 32)
IMAGES = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(3))
REPO = "somebody/resnet20-cbam"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The only hub that huggingface_hub knows while a test runs; its cache and token are of no use."""
    with served(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def trained(seed=4, **options):
    model = build_model("resnet20", 10)
    attach(model, input_size=SIZE, **options)
    return peers.shaken(model, seed)


def push(model, **options):
    return cbam.push_to_hub(model, REPO, **{"backbone": "resnet20", "token": TOKEN, **options})


def same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())
    assert torch.equal(a(IMAGES), b(IMAGES))


def test_there_and_back(hub, tmp_path):
    model = trained(preset="official")
    facts = {"class_names": list("abcdefghij"), "input_size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3}
    url = push(model, **facts)
    commit = hub.branches[REPO]["main"][-1]
    assert (url, type(url)) == (f"{hub.url}/{REPO}/commit/{commit}", str)
    again = cbam.from_pretrained(REPO, cache_dir=tmp_path / "elsewhere")
    same(again, model)
    assert not again.training
    beside = cbam.from_pretrained(cbam.save_pretrained(model, tmp_path / "folder", "resnet20", **facts))
    assert again.cbam_config == beside.cbam_config  # its digest of the weights included
    assert again.cbam_config.class_names == tuple("abcdefghij")
    assert [path.name for path in (tmp_path / "elsewhere").glob("models--*")] == [
        "models--somebody--resnet20-cbam"
    ]


def test_the_files_are_those_of_a_folder(hub):
    """What save_pretrained writes, names without a prefix, and the card."""
    model = trained()
    push(model)
    there = hub.folder(REPO)
    assert {path.name for path in there.iterdir()} == {
        ".gitattributes", "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    assert load_file(there / "model.safetensors").keys() == model.state_dict().keys()
    same(cbam.from_pretrained(there), model)  # a clone of the repository is a folder as any


def test_the_attention_alone(hub):
    base = peers.shaken(build_model("resnet20", 10), 5)
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    attach(base, input_size=SIZE)
    with torch.no_grad():
        for key, tensor in base.state_dict().items():
            if "cbam" in key or key.startswith("fc"):
                tensor += 0.01
    push(base.eval(), attention_only=True)
    assert {path.name for path in hub.folder(REPO).iterdir()} >= {"attention.safetensors", "config.json"}
    assert not (hub.folder(REPO) / "model.safetensors").exists()
    fresh = build_model("resnet20", 10)
    fresh.load_state_dict(weights)
    assert cbam.from_pretrained(REPO, fresh) is fresh
    same(fresh, base)
    with pytest.raises(CBAMError, match="gates, head and batch norms only"):
        cbam.from_pretrained(REPO)


def test_every_push_is_a_commit(hub):
    first, second = trained(4), trained(7)
    old = push(first).rsplit("/", 1)[1]
    new = push(second, commit_message="trained longer").rsplit("/", 1)[1]
    assert hub.branches[REPO]["main"][1:] == [old, new]
    same(cbam.from_pretrained(REPO), second)
    same(cbam.from_pretrained(REPO, revision=old), first)


def test_weights_come_from_the_commit_of_their_config(hub, monkeypatch):
    """A push between the two downloads changes nothing."""
    first = trained(4)
    push(first)
    fetched = []
    download = hub_library.hf_hub_download

    def slow(name, file, **options):
        path = download(name, file, **options)
        fetched.append(file)
        if len(fetched) == 1:
            push(trained(7))
        return path

    monkeypatch.setattr(hub_library, "hf_hub_download", slow)
    same(cbam.from_pretrained(REPO), first)
    assert fetched[0] == "config.json"
    assert len(hub.branches[REPO]["main"]) == 3


def test_once_fetched_it_is_there_without_the_hub(hub):
    model = trained()
    push(model)
    cbam.from_pretrained(REPO)
    hub.requests.clear()
    same(cbam.from_pretrained(REPO, local_files_only=True), model)
    assert hub.requests == []


def test_branches_and_pull_requests(hub):
    hub.create(REPO, branches=("main", "trial"))
    model = trained()
    push(model, branch="trial")
    same(cbam.from_pretrained(REPO, revision="trial"), model)
    assert not (hub.folder(REPO) / "config.json").exists()
    url = push(model, create_pr=True)
    assert url.endswith(hub.branches[REPO]["refs/pr/1"][-1])
    assert not (hub.folder(REPO) / "config.json").exists()
    with pytest.raises(CBAMError, match=r"could not push to .*RevisionNotFound"):
        push(model, branch="absent")


@pytest.mark.parametrize("branch", [None, "trial"])
def test_the_lines_of_the_card_run(branch, hub):
    hub.create(REPO, branches=("main", "trial"))
    model = trained()
    push(model, branch=branch)
    text = hub.text(REPO, revision=branch or "main")
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    same(names["model"], model)


def test_private(hub):
    push(trained(), private=True)
    assert hub.private == {REPO: True}


def test_a_card_that_a_person_wrote_stays(hub):
    hub.create(REPO)
    hub.commit(REPO, {"README.md": b"# My network\n"})
    push(trained())
    assert hub.text(REPO) == "# My network\n"
    assert (hub.folder(REPO) / "model.safetensors").exists()


def test_a_card_of_an_earlier_push_is_written_again_unless_changed(hub):
    push(trained(), metrics={"top-1": 0.5})
    assert "| top-1 | 0.5 |" in hub.text(REPO)
    push(trained(), metrics={"top-1": 0.6})
    assert "| top-1 | 0.6 |" in hub.text(REPO)
    changed = hub.text(REPO).replace("## Results", "## Results on my own images")
    hub.commit(REPO, {"README.md": changed.encode()})
    push(trained(), metrics={"top-1": 0.7})
    assert hub.text(REPO) == changed


REFUSED = [
    ({"backbone": "resnet32"}, "not what 'resnet32' builds"),
    ({"class_names": ["a", "b"]}, "2 class names for 10 outputs"),
    ({"create_pr": True, "branch": "trial"}, "create_pr or branch, not both"),
    ({"metrics": {"top-1": [0.9]}}, "metrics expects numbers or strings"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_makes_nothing_on_the_hub(wrong, message, hub):
    with pytest.raises(CBAMError, match=message):
        push(trained(), **wrong)
    assert hub.requests == []
    assert hub.branches == {}


@pytest.mark.parametrize(
    "name", ["alone", "a/b/c", "./a/b", "../b", "user/", "/name", "user/na me", "user/a--b"]
)
def test_names_that_no_repository_has(name, hub):
    with pytest.raises(CBAMError, match=r"Give 'user/name'|HFValidationError"):
        cbam.push_to_hub(trained(), name, token=TOKEN)
    assert hub.requests == []


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_who_may_not_write(token, hub):
    with pytest.raises(CBAMError, match=r"^could not push to .*401.*Give a token that may write"):
        push(trained(), token=token)
    assert hub.branches == {}


def test_what_is_not_on_the_hub(hub):
    with pytest.raises(CBAMError, match=r"could not fetch 'somebody/else' .*RepositoryNotFound"):
        cbam.from_pretrained("somebody/else")
    hub.create(REPO)
    with pytest.raises(CBAMError, match=r"could not fetch .*EntryNotFound"):
        cbam.from_pretrained(REPO)
    push(trained())
    with pytest.raises(CBAMError, match=r"could not fetch .*RevisionNotFound"):
        cbam.from_pretrained(REPO, revision="absent")


CONFIGS = [
    (b"[" * 100_000, "is damaged"),
    (b" " * (2**20 + 1), "more than 1,048,576 bytes"),
    (b'{"library_name": "timm", "folder": "x"}', r"was not written by cbam\.save_pretrained"),
]


@pytest.mark.parametrize(("content", "message"), CONFIGS, ids=["nested", "large", "another's"])
def test_configs_of_strangers_meet_our_limits_first(content, message, hub, monkeypatch):
    hub.create(REPO)
    hub.commit(REPO, {"config.json": content})
    fetched = []
    download = hub_library.hf_hub_download

    def noted(name, file, **options):
        fetched.append(file)
        return download(name, file, **options)

    monkeypatch.setattr(hub_library, "hf_hub_download", noted)
    with pytest.raises(CBAMError, match=message):
        cbam.from_pretrained(REPO)
    assert fetched == ["config.json"]


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        closed + "/{repo_id}/resolve/{revision}/{filename}",
    )
    with pytest.raises(CBAMError, match="could not push to"):
        push(trained())
    with pytest.raises(CBAMError, match="could not fetch"):
        cbam.from_pretrained(REPO)


@pytest.mark.slow
def test_without_the_hub_library(tmp_path):
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; import cbam; from cbam.models import build_model\n"
        "try: cbam.push_to_hub(build_model('resnet20', 10), 'a/b')\n"
        "except cbam.errors.MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pushing to 'a/b' needs the package 'huggingface_hub'")
    assert "pip install 'torch-cbam[hub]'" in done.stdout
