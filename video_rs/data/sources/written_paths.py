r"""Find the files of a list whose paths do not exist as written.

Such a path has backslashes or a drive letter (``C:\data\a.mp4``), starts with ``~``, ``$HOME`` or ``file://``, is
relative to the folder of the list instead of ``data.root``, lacks the extension, or looks the same as an
existing path; see ``lookalikes``.
"""

import os
import re
from functools import cache

from video_rs.data.sources.entries import has_extension
from video_rs.data.sources.lookalikes import PathFinder, difference
from video_rs.data.video.media import MEDIA_EXTENSIONS
from video_rs.errors import UserError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # also of a network share


class WrittenPaths:
    """Find files by the paths of a list.

    Args:
        base: folder that the paths are relative to.
        folder: folder of the list.
        add_extensions: True if paths may lack the extension.
    """

    def __init__(self, base: str, folder: str, add_extensions: bool) -> None:
        self._base, self._folder = base, folder
        self._suffixes = ("", *sorted(MEDIA_EXTENSIONS)) if add_extensions else ("",)
        self._foreign: list[str] = []  # folders of another machine that the paths start with, once known
        self._finder = PathFinder()
        self._folders = cache(self._finder.find_all)

    def find(self, path: str, place: str) -> str | None:
        """Return the file that matches a path; None if there is none.

        Args:
            path: the path, joined to the base folder.
            place: file and line, for messages.

        Raises:
            UserError: several files match.
        """
        written = path.removeprefix(os.path.join(self._base, "")).removeprefix("file://")
        found = self._candidates(written)
        if len(found) > 1:  # realpath accesses each folder of a path
            found = list({os.path.realpath(each): each for each in found}.values())
        if len(found) > 1:
            first, second = sorted(found)[:2]
            raise UserError(f"{place}: two files match: {difference(first, second)}; correct the path")
        return found[0] if found else None

    def _candidates(self, written: str) -> list[str]:
        """Return the files that match a path."""
        if _DRIVE.match(written):
            return self._of_other_machine(re.split(r"[\\/]+", written))
        if written.startswith(("~", "$")):
            return self._present(os.path.expanduser(os.path.expandvars(written)))
        return self._below_bases(written)

    def _of_other_machine(self, parts: list[str]) -> list[str]:
        """Return the files that match a path without its first folders, which are the same for all paths."""
        for start in [len(self._foreign)] if self._foreign else range(1, len(parts)):
            foreign = [part.lower() for part in parts[:start]]
            found = self._below_bases("/".join(parts[start:])) if self._foreign in ([], foreign) else []
            if found:
                self._foreign = foreign
                return found
        return []

    def _below_bases(self, path: str) -> list[str]:
        bases = dict.fromkeys((self._base, self._folder))
        return [file for base in bases for file in self._present(os.path.join(base, path))]

    def _present(self, path: str) -> list[str]:
        folder, name = os.path.split(path.replace("\\", "/").rstrip("/"))
        found = self._folders(folder) if folder else [""]
        suffixes = ("",) if not found or has_extension(name) else self._suffixes
        return [
            os.path.join(place, there)
            for place in found
            for suffix in suffixes
            for there in self._finder.names(place, name + suffix)
        ]
