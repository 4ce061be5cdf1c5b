"""How a picture becomes what a network sees: augmented at random in training, one fixed part of it otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchvision.transforms import v2

from cbam.errors import CBAMError, unknown_name

AUGMENTATIONS = ("none", "flip", "crop", "randaugment", "trivial", "autoaugment", "augmix")
SMALL = 96
"""Below this size a validation picture is not cut smaller than its short side, and training shifts it by an eighth."""
SHIFT = "shift"
IMAGENET_CROP = 0.08
_POLICIES: dict[str, Any] = {
    "randaugment": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
    "augmix": v2.AugMix,
}


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random in training.

    Args:
        policy: one of `AUGMENTATIONS`; those behind "crop" add torchvision's policy of that name to crop and flip.
        crop: smallest share of a picture's area in a random crop (torchvision's RandomResizedCrop), or "shift": as in
            validation, then moved by up to an eighth of the size, the edge filled by its mirror image.
        flip: probability of mirroring left and right.

    >>> Augmentation("crop", 0.08, 0.5).words
    'random crops of 8 to 100 % of the area, mirrored at random'
    >>> Augmentation("trivial", "shift", 0.0).words
    'shifted by up to an eighth, TrivialAugmentWide'
    """

    policy: str = "crop"
    crop: float | str = IMAGENET_CROP
    flip: float = 0.5

    @property
    def crops(self) -> bool:
        """Whether there is a random crop or shift."""
        return self.policy not in ("none", "flip")

    @property
    def mirrors(self) -> bool:
        """Whether some images are mirrored."""
        return self.policy != "none" and self.flip > 0

    def more(self) -> list[Any]:
        """Return the policy's own transform beside crop and flip, for images of 8 bits a channel."""
        return [_POLICIES[self.policy]()] if self.policy in _POLICIES else []

    def transform(self, size: int, resize: int) -> v2.Compose | None:
        """Return the transform of PIL images; None if nothing is drawn and a picture is seen as in validation.

        Args:
            size, resize: see `cbam.data.prepared.centre_crop`.
        """
        if self.policy == "none":
            return None
        steps: list[Any] = [v2.Resize(resize), v2.CenterCrop(size)]
        if self.crops and isinstance(self.crop, float):
            steps = [v2.RandomResizedCrop(size, scale=(self.crop, 1.0))]
        elif self.crops:
            steps = [v2.Resize(resize), v2.RandomCrop(size, padding=margin(size), padding_mode="reflect")]
        if self.mirrors:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        return v2.Compose([*steps, *self.more()])

    @property
    def words(self) -> str:
        """What is drawn, for the plan of a run."""
        parts = []
        if self.crops and isinstance(self.crop, float):
            parts.append(f"random crops of {100 * self.crop:.3g} to 100 % of the area")
        elif self.crops:
            parts.append("shifted by up to an eighth")
        if self.mirrors:
            parts.append("mirrored at random" if self.flip == 0.5 else f"mirrored in {100 * self.flip:.3g} %")
        if self.policy in _POLICIES:
            parts.append(_POLICIES[self.policy].__name__)
        return ", ".join(parts) or "as in validation, nothing is drawn at random"


def margin(size: int) -> int:
    """Return by how many pixels a picture of this size is shifted at most.

    >>> margin(32), margin(4)
    (4, 1)
    """
    return max(1, size // 8)


def make_augmentation(
    size: int, policy: str | None, crop: float | str | None, flip: float | None, *, mirror: bool = True
) -> Augmentation:
    """Return the augmentation with the defaults of the image size filled in.

    Args:
        size: height and width of what the network sees.
        policy: one of `AUGMENTATIONS`; None: "crop".
        crop: see `Augmentation`, as typed; None: "shift" below `SMALL` pixels, else 0.08 as for ImageNet.
        flip: see `Augmentation`; None: 0.5 if `mirror`, else 0, and 0.5 with "flip".
        mirror: whether a mirror image keeps its class, as far as that is known.

    Raises:
        CBAMError: a policy, a share or a probability that does not exist, or one without effect.

    >>> make_augmentation(32, None, None, None)
    Augmentation(policy='crop', crop='shift', flip=0.5)
    >>> make_augmentation(224, "trivial", "0.25", 0)
    Augmentation(policy='trivial', crop=0.25, flip=0.0)
    """
    policy = "crop" if policy is None else policy
    if policy not in AUGMENTATIONS:
        raise unknown_name("--augment", policy, AUGMENTATIONS)
    without = [("--crop", crop)] if policy in ("none", "flip") else []
    without += [("--flip", flip)] if policy == "none" else []
    for option, given in without:
        if given is not None:
            raise CBAMError(
                f"{option} {given} has no effect with --augment {policy}: leave one of the two out"
            )
    if flip is None:
        flip = 0.5 if mirror or policy == "flip" else 0.0
    elif not 0 <= flip <= 1:
        raise CBAMError(f"--flip is a probability from 0 to 1, given {flip}")
    share: float | str = SHIFT if size < SMALL else IMAGENET_CROP
    return Augmentation(policy, share if crop is None else _share(crop), float(flip))


def _share(crop: float | str) -> float | str:
    if crop == SHIFT:
        return SHIFT
    try:
        share = float(crop)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise CBAMError(
            f"--crop takes the smallest share of the area, above 0 and up to 1, e.g. 0.25, or {SHIFT}; given {crop!r}"
        )
    return share
