"""Images for training: Fashion-MNIST, digits, and the user's own folders, checked before use."""

from cbam.data.batches import EpochBatches, make_loader
from cbam.data.doctor import FolderReport, check_folder
from cbam.data.epoch_index import EpochIndexDataset
from cbam.data.image_data import ImageData
from cbam.data.load import load_data

__all__ = [
    "EpochBatches",
    "EpochIndexDataset",
    "FolderReport",
    "ImageData",
    "check_folder",
    "load_data",
    "make_loader",
]
