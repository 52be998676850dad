"""Match names that differ only in Unicode form, case, blanks, invisible characters or backslashes."""

import os
import sys
import unicodedata
from collections.abc import Iterable
from itertools import takewhile

from video_rs.errors import UserError

LIMIT = 100  # characters of a name in a message
WORDS = ("", "timm", "pretrained")  # values of weights options that are not files


def folded(name: str) -> str:
    """Return the folded form of a name, which is the same for all names that look the same.

    Slashes replace backslashes. Each part of a path is compared without case, surrounding blanks, zero-width
    characters, and differences between composed, decomposed, wide and joined characters (NFKC). Any blank is a space.
    """
    if name.isascii() and " " not in name and "\\" not in name and name.isprintable():
        return name.lower()
    visible = "".join(c for c in name.replace("\\", "/") if not _is_invisible(c))
    caseless = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", visible).casefold())
    return "/".join(" ".join(part.split()) for part in unicodedata.normalize("NFC", caseless).split("/"))


def group(names: Iterable[str]) -> dict[str, list[str]]:
    """Group different names by their :func:`folded` form."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(folded(name), []).append(name)
    return groups


def difference(first: str, second: str) -> str:
    r"""Return a phrase that shows where two names differ: ``'caf\xe9' has U+00E9, 'cafe\u0301' has e + U+0301``."""
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))
    ends = zip(reversed(first[start:]), reversed(second[start:]))
    end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    if len(first) == len(second):  # only the first of several differences
        rest = zip(first[start:], second[start:])
        end = len(first) - start - sum(1 for _ in takewhile(lambda pair: pair[0] != pair[1], rest))
    parts = [f"{_escaped(name, start)} has {_code_points(name[start : len(name) - end])}" for name in (first, second)]
    return ", ".join(parts)


class PathFinder:
    """Find files whose paths look the same as a given one. Each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find_all(self, path: str) -> list[str]:
        """Return the existing paths that look like `path`, part by part; only `path` if it exists."""
        if os.path.exists(path):
            return [path]
        places = ["/" if path.startswith(("/", "\\")) else ""]
        for part in filter(None, path.replace("\\", "/").split("/")):
            places = [there for place in places for there in self._below(place, part)]
        return [place for place in places if place]

    def names(self, folder: str, name: str) -> list[str]:
        """Return the names in a folder that look like a name; only `name` if it is in the folder."""
        found = self._names(folder or ".").get(folded(name), [])
        return [name] if name in found else found

    def _below(self, folder: str, name: str) -> list[str]:
        there = os.path.join(folder, name)
        if os.path.exists(there):
            return [there]
        return [os.path.join(folder, found) for found in self.names(folder, name)]

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._folders:
            try:
                self._folders[folder] = group(os.listdir(folder))
            except OSError:  # missing, no folder, or not readable
                self._folders[folder] = {}
        return self._folders[folder]


def resolve(path: str, name: str, base: str = "") -> str:
    """Return a path of a config or command; or the existing path that looks the same, with a note on stderr.

    URLs, :data:`WORDS`, and paths without a lookalike are returned unchanged.

    Args:
        path: the path.
        name: its option, for messages.
        base: a folder that the path may be relative to.

    Raises:
        UserError: the path does not exist, and several existing ones look the same.
    """
    is_file = path not in WORDS and "://" not in path and not path.startswith("hf-hub:")
    if not is_file or os.path.exists(path) or os.path.exists(os.path.join(base, path)):
        return path
    finder = PathFinder()
    ways = finder.find_all(path) or (finder.find_all(os.path.join(base, path)) if base else [])
    if len(ways) > 1:
        differences = "; ".join(difference(path, way) for way in ways[:2])
        raise UserError(f"{name}={path}: no such file or folder; {differences}; give one of these")
    if ways and ways[0] != path and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"note: {name}: {difference(path, ways[0])}; the latter exists and is used", file=sys.stderr)
    return ways[0] if ways else path


def _is_invisible(character: str) -> bool:
    """Return True for format characters (zero-width, direction marks, soft hyphen) and variation selectors."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _escaped(name: str, at: int) -> str:
    """Return a name in ASCII with escapes. Of a long one, the part around the position `at`."""
    if len(name) <= LIMIT:
        return ascii(name)
    start = max(0, min(at - LIMIT // 2, len(name) - LIMIT))
    return ("..." if start else "") + ascii(name[start : start + LIMIT])


def _code_points(text: str) -> str:
    shown = [c if c.isascii() and c.isprintable() and c != " " else f"U+{ord(c):04X}" for c in text[:4]]
    return " + ".join(shown + ["..."] * (len(text) > 4)) or "nothing"
