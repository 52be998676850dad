"""Small contracts, and clips that keep them."""

import torch

from video_rs.data_config import DataContract


def contract(num_frames, size=32, test_size=None, **kwargs):
    test_size = test_size or size
    return DataContract(num_frames, 2, train_size=size, short_side=test_size, test_size=test_size, **kwargs)


def clips(contract, size=None, count=1):
    generator = torch.Generator().manual_seed(0)
    size = size or contract.train_size
    return torch.rand(count, contract.in_channels, contract.num_frames, size, size, generator=generator)
