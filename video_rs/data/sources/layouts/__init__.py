"""The layouts of public datasets, one per file. All modules in this folder are imported and registered."""

import importlib
import pkgutil

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts.base import Layout, find, recognise, register_layout

__all__ = ["Entry", "Layout", "find", "recognise", "register_layout"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
