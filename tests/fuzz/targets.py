"""What reads files of strangers: for each kind of file, good ones to start from and a function that reads any bytes.

A target returns or raises a `CBAMError`; anything else is a finding, and so is an input that takes long or much memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from safetensors.torch import save

from cbam import CBAM, attach, load_weights
from cbam.data.detection.coco import read_coco
from cbam.data.detection.voc import read_voc
from cbam.data.detection.yolo import read_yolo
from cbam.data.pictures import BadImage, check_image, decode_image
from cbam.data.shards.headers import Rows, scan_tar
from cbam.data.shards.index import Part, read_index, write_index
from cbam.data.shards.load import _class_names
from cbam.data.shards.locations import ShardNames
from cbam.data.shards.storage import Stamp
from cbam.errors import CBAMError
from cbam.pretrained import read_config, save_pretrained
from cbam.runs.folder import RunFolder
from cbam.runs.options import file_arguments
from cbam.train.config import TrainConfig, TrainRunConfig
from tests.attach.networks import Block, Net
from tests.data.detection import layouts
from tests.data.shards import tars

Reader = Callable[[bytes], None]
_MOST_PIXELS = 10_000


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Args:
        seeds: returns good files.
        make: folder -> the function that reads a file's bytes, in that folder.
    """

    seeds: Callable[[], Sequence[bytes]]
    make: Callable[[Path], Reader]


def reader_of(name: str, folder: Path) -> Reader:
    """Return the function that reads bytes as a target does, and lets only surprises out."""
    read = TARGETS[name].make(folder)

    def run(content: bytes) -> None:
        with suppress(CBAMError):
            read(content)

    return run


def _weights() -> list[bytes]:
    torch.manual_seed(0)
    state = CBAM(8, preset="official").state_dict()
    files = [save(state)]
    for legacy in (False, True):
        stream = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, stream, _use_new_zipfile_serialization=not legacy)
        files.append(stream.getvalue())
    return files


def _load_weights(folder: Path) -> Reader:
    model = CBAM(8, preset="official")
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def read(content: bytes) -> None:
        file = folder / ("w.pth" if content[:1] in (b"P", b"\x80") else "w.safetensors")
        file.write_bytes(content)
        try:
            load_weights(model, file)
        except CBAMError:
            after = model.state_dict()
            assert before.keys() == after.keys(), "a failed load changed the keys"
            assert all(torch.equal(before[k], after[k]) for k in before), "a failed load changed the model"
        else:
            model.load_state_dict(before)

    return read


def _config_files() -> list[bytes]:
    model = Net(Block(8), Block(8))
    attach(model, input_size=16, preset="official")
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        saved = (Path(folder) / "config.json").read_bytes()
    yaml = b"epochs: 3\nlr: 0.1\ndata: digits\nmodel: resnet20\nattention: [cbam, se]\nmixup: null\nprecision: no\n"
    return [saved, yaml, b"data: 'digits'\nepochs: !!int 3\nlr: 1e-3\n? x\n: [1, {a: b}]\n# end\n"]


def _read_configs(folder: Path) -> Reader:
    def read(content: bytes) -> None:
        for name in ("config.json", "config.yaml"):
            (folder / name).write_bytes(content)
        RunFolder(folder).settings()
        with suppress(CBAMError):
            read_config(folder)
        file_arguments(folder / "config.yaml", [TrainRunConfig, TrainConfig])

    return read


def _with_folder(make: Callable[[Path], Path], *files: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        with TemporaryDirectory() as folder:
            root = make(Path(folder))
            return [(root / file).read_bytes() for file in files]

    return seeds


def _coco(root: Path) -> Path:
    return layouts.coco_2017(root)


def _yolo(root: Path) -> Path:
    layouts.save_image(root / "images" / "train" / "1.jpg")
    layouts.save_image(root / "images" / "val" / "2.jpg")
    for side, text in (
        ("train/1", "0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.5 0.1 0.5 0.9\n"),
        ("val/2", "1 0.2 0.3 0.1 0.1\n"),
    ):
        (root / "labels" / side).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{side}.txt").write_text(text)
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    )
    return root


_XML = """<annotation><folder>VOC2007</folder><filename>{0}.jpg</filename>
<size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>16</ymax>
</bndbox></object></annotation>"""


def _voc(root: Path) -> Path:
    year = root / "VOC2007"
    for name in ("Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        layouts.save_image(year / "JPEGImages" / f"{number:06d}.jpg")
        (year / "Annotations" / f"{number:06d}.xml").write_text(_XML.format(f"{number:06d}"))
    (year / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000002\n")
    return root


def _annotations(
    make: Callable[[Path], Path], read_set: Callable[[Path, dict[str, str]], object], *files: str
) -> Callable[[Path], Reader]:
    """Write the bytes over each of the files in turn and read the set."""

    def target(folder: Path) -> Reader:
        root = make(folder)
        good = {file: (root / file).read_bytes() for file in files}

        def read(content: bytes) -> None:
            for file in files:
                (root / file).write_bytes(content)
                try:
                    with suppress(CBAMError):
                        read_set(root, {})
                finally:
                    (root / file).write_bytes(good[file])

        return read

    return target


_COCO = ("annotations/instances_train2017.json",)
_YOLO = ("data.yaml", "labels/train/1.txt")
_VOC = ("VOC2007/Annotations/000001.xml", "VOC2007/ImageSets/Main/trainval.txt")


def _images() -> list[bytes]:
    files = []
    for mode, form, more in (
        ("RGB", "JPEG", {}), ("RGB", "PNG", {}), ("P", "GIF", {}), ("L", "BMP", {}), ("RGB", "WEBP", {}),
        ("L", "PPM", {}), ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("LA", "PNG", {}), ("CMYK", "JPEG", {}),
    ):  # fmt: skip
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.effect_noise((9, 7), 60).convert(mode).save(stream, form, **({"exif": exif} | more))
        files.append(stream.getvalue())
    return files


def _decode(folder: Path) -> Reader:
    def read(content: bytes) -> None:
        problem = None
        try:
            check_image(content, _MOST_PIXELS, "image")
        except BadImage as error:
            problem = error
        try:
            image = decode_image(content, "image", _MOST_PIXELS)
        except BadImage:
            assert problem is not None, "the check passes an image that cannot be decoded"
        else:
            assert image.mode == "RGB"
            assert image.width * image.height <= _MOST_PIXELS

    return read


def _shards() -> list[bytes]:
    files = [tars.tar_bytes(*tars.samples(range(3))), tars.tar_bytes(*tars.samples(range(2)), format_=2)]
    labels = [tars.member("a.jpg", b"image"), tars.member("a.json", b'{"label": 3}')]
    return [*files, tars.tar_bytes(*labels), b'["cat", "dog"]', b'{"cat": 0, "dog": 1}', _index()]


def _index() -> bytes:
    with TemporaryDirectory() as folder:
        rows = Rows(
            *(torch.tensor(column, dtype=torch.int32).numpy() for column in ([1, 5], [30, 40], [0, 1]))
        )
        parts = [Part("a.tar", Stamp(4096, "tag"), rows)]
        return write_index(Path(folder) / "index", parts).path.read_bytes()


def _scan(folder: Path) -> Reader:
    names = ShardNames(str(folder), ("a.tar",), ())

    def read(content: bytes) -> None:
        with suppress(CBAMError):
            scan_tar(io.BytesIO(content), "a.tar", len(content), {"cat": 0})
        (folder / "index").write_bytes(content)
        index = read_index(folder / "index")
        for shard in () if index is None else index.shards.values():
            index.is_damaged(shard)
        (folder / "classes.json").write_bytes(content)
        _class_names(names)

    return read


TARGETS = {
    "checkpoints": Target(_weights, _load_weights),
    "configs": Target(_config_files, _read_configs),
    "annotations-coco": Target(_with_folder(_coco, *_COCO), _annotations(_coco, read_coco, *_COCO)),
    "annotations-voc": Target(_with_folder(_voc, *_VOC), _annotations(_voc, read_voc, *_VOC)),
    "annotations-yolo": Target(_with_folder(_yolo, *_YOLO), _annotations(_yolo, read_yolo, *_YOLO)),
    "images": Target(_images, _decode),
    "shards": Target(_shards, _scan),
}
FOUND = Path(__file__).parent / "found"  # inputs that once were findings, by target


def found(name: str) -> list[Path]:
    """Return the files that once showed a fault of a target."""
    return sorted((FOUND / name).glob("*"))
