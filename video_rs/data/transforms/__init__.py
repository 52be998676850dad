"""From frames to clips of one size: crops, augmentation, mixing."""

from video_rs.data.transforms.registry import register_augmentation
from video_rs.data.transforms.video_transform import VideoTransform, create_transform

__all__ = ["VideoTransform", "create_transform", "register_augmentation"]
