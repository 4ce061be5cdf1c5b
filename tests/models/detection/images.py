"""Images and targets small enough for detectors on two CPU cores."""

import torch

SMALL = {"min_size": 64, "max_size": 96}
FEW = {
    **SMALL,
    "rpn_post_nms_top_n_train": 20,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
}
IMAGES = [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def options(name):
    """Options that keep a detector small."""
    if "300" in name:
        return {"width": 0.125}
    return {**(FEW if "rcnn" in name else SMALL), **({"width": 0.25} if "mobilenet_v1" in name else {})}


def target(objects, masks=False):
    """A target with up to two objects."""
    boxes = torch.tensor([[4.0, 4.0, 50.0, 60.0], [20.0, 8.0, 70.0, 40.0]])[:objects]
    found = {"boxes": boxes, "labels": torch.arange(1, objects + 1)}
    if masks:
        found["masks"] = torch.ones(objects, 64, 80, dtype=torch.uint8)
    return found


def losses(model, counts, seed=0):
    """The losses of a training step on one image for each count of objects, without the step."""
    torch.manual_seed(seed)
    masks = type(model).__name__ == "MaskRCNN"
    return model.train()(IMAGES[: len(counts)], [target(n, masks) for n in counts])


def found(model, images=IMAGES):
    """What the model finds."""
    with torch.no_grad():
        return model.eval()(images)


def same(a, b):
    """Whether two dicts of losses, or two lists of what was found, are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def parameters(model):
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())
