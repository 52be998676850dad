"""Images through PIL, each a video of one frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from video_rs.data.shards import Blob, File, in_memory
from video_rs.data.video.media import media_errors, require_file
from video_rs.errors import MediaError


def read_image(path: File) -> Tensor:
    """An image file, upright by its EXIF tag, as uint8 ``[1, H, W, 3]``. Raises ``MediaError``.

    16 bits are brought to 8; of 32 bits nobody says which values are black and white.
    """
    from PIL import Image, ImageOps

    file = in_memory(path)
    require_file(file)
    opened = file.open() if isinstance(file, Blob) else file
    with media_errors(path, Exception), Image.open(opened) as image:  # a damaged image may raise anything in PIL
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F"):
            raise MediaError(f"{path}: 32 bits per pixel: convert it to 8 or 16")
        if upright.mode.startswith("I;16"):  # PIL would clip it
            gray = (np.array(upright).astype(np.uint32) + 128) // 257
            upright = Image.fromarray(gray.astype(np.uint8))
        return torch.from_numpy(np.array(upright.convert("RGB")))[None]
