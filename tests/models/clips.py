"""Small data configs, and clips that keep them."""

import torch

from video_rs.data_config import DataConfig


def data_config(num_frames, size=32, test_size=None, **kwargs):
    test_size = test_size or size
    return DataConfig(num_frames, 2, train_size=size, short_side=test_size, test_size=test_size, **kwargs)


def clips(data_config, size=None, count=1):
    generator = torch.Generator().manual_seed(0)
    size = size or data_config.train_size
    return torch.rand(count, data_config.in_channels, data_config.num_frames, size, size, generator=generator)
