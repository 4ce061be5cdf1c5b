"""The wording that users meet."""

from cbam.errors import CBAMError, MissingExtra, nearest, unknown_name


def test_unknown_name_lists_and_points():
    message = str(unknown_name("preset", "Offical", ["paper", "official", "timm"]))
    assert message == "unknown preset 'Offical'. Did you mean 'official'? Valid: 'paper', 'official', 'timm'."


def test_unknown_name_far_from_all():
    assert "Did you mean" not in str(unknown_name("preset", "xyzzy", ["paper"]))
    assert "Did you mean" not in str(unknown_name("preset", 7, ["paper"]))


def test_nearest_ignores_case():
    assert nearest("RESNET50", ["resnet50", "vgg16"]) == ["resnet50"]


def test_missing_extra_says_what_to_type():
    error = MissingExtra("cbam compare", "compare", "timm")
    assert isinstance(error, ImportError)
    assert isinstance(error, CBAMError)
    assert "pip install 'torch-cbam[compare]'" in str(error)
