"""Pictures with what a network says of them, as files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cbam.data.pictures import open_image
from cbam.predict.files import Predicted
from cbam.predict.prediction import Prediction

_WIDTH, _LINE, _PAD = 480, 30, 12
_INK, _BAR, _PAPER = (28, 28, 30), (120, 166, 214), (255, 255, 255)


def draw_predictions(predicted: Predicted, folder: Path, top: int) -> int:
    """Write each picture with its most probable classes below it; return how many.

    Args:
        predicted: pictures and what the network says of them.
        folder: made if it is not there.
        top: how many classes.
    """
    count = 0
    for path, one in predicted.files.items():
        if isinstance(one, Prediction):
            target = (folder / predicted.names[path]).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            draw(open_image(path), one, top).save(target)
            count += 1
    return count


def draw(picture: Image.Image, prediction: Prediction, top: int = 5) -> Image.Image:
    """Return a picture with its most probable classes below it, each with a bar of its probability.

    >>> import torch
    >>> said = Prediction("a", ("cat", "dog"), torch.tensor([0.25, 0.75]))
    >>> draw(Image.new("RGB", (64, 48)), said, 2).size
    (480, 444)
    """
    rows = prediction.top(top)
    height = max(1, round(picture.height * _WIDTH / picture.width))
    sheet = Image.new("RGB", (_WIDTH, height + len(rows) * _LINE + 2 * _PAD), _PAPER)
    small = picture.width < _WIDTH // 4  # each pixel is to be seen
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    sheet.paste(picture.resize((_WIDTH, height), how))
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LINE * 0.55)
    for number, (name, value) in enumerate(rows):
        y = height + _PAD + number * _LINE
        width = round(value * (_WIDTH - 2 * _PAD))
        canvas.rectangle((_PAD, y + 3, _PAD + max(1, width), y + _LINE - 3), fill=_BAR)
        canvas.text((_PAD + 6, y + _LINE / 2), _fitting(name, font), _INK, font, anchor="lm")
        canvas.text((_WIDTH - _PAD - 6, y + _LINE / 2), f"{100 * value:.1f} %", _INK, font, anchor="rm")
    return sheet


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    most = _WIDTH - 2 * _PAD - 90
    if font.getlength(name) <= most:
        return name
    while name and font.getlength(f"{name}…") > most:
        name = name[:-1]
    return f"{name}…"
