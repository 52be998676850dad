"""Import the plugins of a config: Python files that register networks, layouts, augmentations or losses."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from video_rs.errors import UserError, first_line


def load_plugins(plugins: Iterable[str]) -> None:
    """Import each plugin once.

    Args:
        plugins: paths of Python files, or names of installed modules.

    Raises:
        UserError: there is no such file or module, or it fails to import.
    """
    for plugin in plugins:
        name = Path(plugin).stem if plugin.endswith(".py") else plugin
        if name in sys.modules and plugin.endswith(".py"):
            known = getattr(sys.modules[name], "__file__", None)
            if known is None or Path(known).resolve() != Path(plugin).resolve():
                raise UserError(f"plugins={plugin}: there is already a module {name} ({known}); rename the file")
        if name in sys.modules:
            continue
        if not plugin.endswith(".py") and os.path.exists(plugin):
            raise UserError(f"plugins={plugin}: not a Python file; its name must end with .py")
        try:
            if plugin.endswith(".py"):
                _import_file(name, Path(plugin))
            else:
                importlib.import_module(name)
        except Exception as error:  # a plugin may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"plugins={plugin}: cannot be imported ({reason}); {_advice(error)}") from error


def _advice(error: Exception) -> str:
    """Return the line of the plugin that failed: "see my_net.py:3"."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"see {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__) and frame.line]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"see {own[-1].filename}:{own[-1].lineno}" if own else "name a Python file or module"


def _import_file(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as for any import, to make its classes picklable
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
