"""Files by address, fetched once: ``local("https://host/best.pt")`` is the path of a copy on this machine.

The copy and its checksum, as ``sha256sum --check`` reads it, lie in a folder for each address in ``$VIDEO_RS_CACHE``,
else ``$XDG_CACHE_HOME/video_rs``, else ``~/.cache/video_rs``. Every use compares the two. A file that changes at its
address is not noticed: give changed weights another name, or name the checksum in the address, which then has a folder
of its own.

Of what fetches files already, ``torch.hub.download_url_to_file`` neither checks what it kept, nor notices a connection
that ended early, nor gives up on one that hangs, and huggingface_hub, which comes with timm alone, serves one site. So
this is the standard library's urllib, whose proxies and redirects are all that weights need. Queries may hold tokens:
no message shows one. (A run's own config and checkpoints keep ``train.init_from`` as it was given.)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import string
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from video_rs.errors import MachineError, UserError
from video_rs.files import atomic_write

TIMEOUT = 30.0  # seconds of silence
CHUNK = 1 << 20  # bytes
NAME_BYTES = 100
HUB_FILE = "model.safetensors"

_SCHEMES = ("http", "https")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|hf-hub:", re.IGNORECASE)
_HUB = re.compile(r"hf-hub:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^?#]+))?")
_DIGITS = r"(?=[a-f]*\d)(?=\d*[a-f])(?:[0-9a-f]{8}|[0-9a-f]{64})"  # neither a date nor a word
_NAMED_CHECKSUM = re.compile(rf"-({_DIGITS})\.[^.]+$")


class _Address(NamedTuple):
    """What to fetch.

    Attributes:
        text: as it was given, without the query and the checksum; for messages.
        url: to ask for.
        checksum: what the sha256 of the file begins with, lower case; empty when unknown.
    """

    text: str
    url: str
    checksum: str

    @property
    def path(self) -> Path:
        """Where its copy lies."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path).rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-NAME_BYTES:].lstrip(".") or "weights"
        folder = hashlib.sha256(f"{self.url}#{self.checksum}".encode()).hexdigest()[:16]
        return cache_folder() / folder / name


def is_address(text: str | Path) -> bool:
    """Whether this is something to fetch rather than a file of this machine."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def shown(address: str | Path) -> str:
    """A path, or an address without what may be secret in it: its query and a login."""
    if not is_address(address):
        return str(address)
    return re.sub(r"(?<=://)[^/?#]*@", "", re.sub(r"\?[^#]*", "", str(address)))


def local(address: str | Path) -> Path:
    """The path of a file, which is fetched first where it is an address of another machine and not yet here.

    Args:
        address: a path, which is returned as it is; ``https://`` or ``http://``; or ``hf-hub:owner/name`` with
            ``/path/of/file`` (default: ``model.safetensors``) after it, and a ``@revision`` (default: ``main``) before
            that, at ``$HF_ENDPOINT`` or huggingface.co. ``#sha256=...`` at its end says what the file must be; else
            the checksum that torch.hub's files carry in their names (``name-1a2b3c4d.pt``: 8 or all 64 digits) does.

    Raises:
        UserError: the address is none, nothing is there, it leads where none may, or the file is not the one that its
            checksum says.
        MachineError: the network, the other machine or the disk failed. What was in the cache is intact.
    """
    if not is_address(address):
        return Path(address)
    wanted = _parse(str(address))
    path = wanted.path
    if _kept(path, wanted.checksum):
        return path
    with _alone(path.parent):
        kept = _kept(path, wanted.checksum)  # perhaps another process fetched it while this one waited
        if kept is False:
            print(f"{path} is damaged, its checksum is wrong; fetching it again", file=sys.stderr, flush=True)
        if not kept:
            _fetch(wanted, path)
    return path


def forget(address: str) -> None:
    """Removes the copy of what is at an address, so that its next use fetches it again."""
    path = _parse(address).path
    for kept in (_checksum_file(path), path):
        kept.unlink(missing_ok=True)


@contextlib.contextmanager
def readable(address: str | Path) -> Iterator[Path]:
    """:func:`local` for a block that reads the file: with its UserError, what was fetched is not kept."""
    file = local(address)
    try:
        yield file
    except UserError as error:
        if not is_address(address):
            raise
        forget(str(address))
        raise UserError(f"{str(error).replace(str(file), shown(address))}; it was fetched and not kept") from None


def cache_folder() -> Path:
    """Where fetched files are kept. It need not exist."""
    if folder := os.environ.get("VIDEO_RS_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "video_rs"


def _parse(address: str) -> _Address:
    text, _, fragment = address.partition("#")
    if text.lower().startswith("hf-hub:"):
        match = _HUB.fullmatch(text)
        if not match:
            raise UserError(f"{shown(address)} is no address: write hf-hub:owner/name, or hf-hub:owner/name/file")
        base = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        url = f"{base.rstrip('/')}/{match['name']}/resolve/{match['revision'] or 'main'}/{match['file'] or HUB_FILE}"
    else:
        url = text
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not checksum:
        raise UserError(f"{shown(address)}: what follows the # must be sha256= and 64 hexadecimal digits")
    try:
        url = urllib.parse.quote(url, safe=string.punctuation)
        parts = urllib.parse.urlsplit(url)
        right = parts.scheme.lower() in _SCHEMES and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # brackets, a port that is no number, bytes that are not UTF-8
        right = False
    if not right:
        raise UserError(
            f"{shown(address)} is no address to fetch from: only https://, http:// and hf-hub: are, without a login"
        )
    named = _NAMED_CHECKSUM.search(parts.path)
    expected = checksum[1].lower() if checksum else named[1] if named else ""
    return _Address(shown(text), url, expected)


# The cache ----------------------------------------------------------------------------------------------------------


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _kept(path: Path, checksum: str) -> bool | None:
    """Whether a copy is what was once fetched, and what was asked for; None where there is none."""
    try:
        recorded, found = _checksum_file(path).read_text(encoding="utf-8", errors="replace").split()[:1], _sha256(path)
        return recorded == [found] and found.startswith(checksum)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MachineError(f"the cached file {path} cannot be read: {error.strerror}") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in this folder, which is made and stays: who waits for it has it open already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MachineError(
            f"{folder} cannot be made: {error.strerror}; name another folder for fetched files with VIDEO_RS_CACHE"
        ) from None
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks; then both fetch, which is safe too
            fcntl.flock(lock, fcntl.LOCK_EX)
            for unfinished in folder.glob(".*"):  # what a killed process was writing
                unfinished.unlink()
        yield
    finally:
        os.close(lock)


# The network --------------------------------------------------------------------------------------------------------


def _fetch(wanted: _Address, path: Path) -> None:
    """Puts a file and its checksum under ``path``, or nothing."""
    digest = hashlib.sha256()
    with atomic_write(path) as handle:
        with _failures(wanted.text):
            response = _open(wanted)
        with response:
            for chunk in _chunks(response, wanted.text):
                digest.update(chunk)
                handle.write(chunk)
        if not digest.hexdigest().startswith(wanted.checksum):
            named = f"-{wanted.checksum}." in wanted.url
            hint = "; if that is not a checksum, append #sha256=<sha256 of the file>" if named else ""
            raise UserError(
                f"{wanted.text} is not the file it should be: its sha256 is {digest.hexdigest()}, not "
                f"{wanted.checksum}{'...' if len(wanted.checksum) < 64 else ''}; nothing of it was kept{hint}"
            )
    with atomic_write(_checksum_file(path), "w") as handle:
        handle.write(f"{digest.hexdigest()}  {path.name}\n")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows them to where a file of weights may come from."""

    def __init__(self, checksum: str) -> None:
        self._checksum = checksum

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        start, end = (urllib.parse.urlsplit(url).scheme.lower() for url in (req.full_url, newurl))
        if end not in _SCHEMES:
            raise UserError(f"{shown(req.full_url)} leads to {shown(newurl)}: only https and http are followed")
        if (start, end) == ("https", "http") and len(self._checksum) < 64:
            raise UserError(
                f"{shown(req.full_url)} leads from https to {shown(newurl)}, where anybody could answer: append "
                "#sha256=<sha256 of the file>"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(wanted: _Address) -> http.client.HTTPResponse:
    from video_rs import __version__

    headers = {"User-Agent": f"video_rs/{__version__}", "Accept-Encoding": "identity"}
    opener = urllib.request.build_opener(_Redirects(wanted.checksum))
    return opener.open(urllib.request.Request(wanted.url, headers=headers), timeout=TIMEOUT)


def _chunks(response: http.client.HTTPResponse, address: str) -> Iterator[bytes]:
    """What a response says, all of it or an error; with a progress bar on a terminal."""
    if response.status != 200:
        raise MachineError(f"{address} could not be fetched: HTTP {response.status} is not the whole file; try later")
    if (packed := response.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
        raise MachineError(f"{address} could not be fetched: it comes packed as {packed}, which nobody asked for")
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{address} is a web page, not a file of weights; give the address of the file itself")
    length = response.headers.get("Content-Length", "")
    total, done = int(length) if length.isdecimal() else None, 0
    with _bar(address, total) as advance:
        while True:
            with _failures(address):
                chunk = response.read(CHUNK)
            if not chunk:
                break
            done += len(chunk)
            advance(len(chunk))
            yield chunk
    if not done or (total is not None and done < total):
        raise MachineError(
            f"{address} could not be fetched: the connection ended after {done:,} of "
            f"{'all' if total is None else format(total, ',')} bytes; try again"
        )


@contextlib.contextmanager
def _failures(address: str) -> Iterator[None]:
    """One line for whatever the network may do. The disk's errors pass: they are ``atomic_write``'s."""
    try:
        yield
    except UserError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403, 404, 410):
            login = ", or wants a login" if error.code in (401, 403) else ""
            raise UserError(f"{address} does not exist{login}: HTTP {error.code} {error.reason}") from None
        raise MachineError(f"{address} could not be fetched: HTTP {error.code} {error.reason}; try later") from None
    except TimeoutError:
        raise MachineError(f"{address} could not be fetched: no answer within {TIMEOUT:g} seconds; try later") from None
    except http.client.InvalidURL:
        raise UserError(f"{address} is no address to fetch from, or leads to one that is none") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            reason = f"no answer within {TIMEOUT:g} seconds"
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise MachineError(f"{address} could not be fetched: {text}; try again") from None


@contextlib.contextmanager
def _bar(address: str, total: int | None):
    """A function that is told of every new byte. Where no terminal shows a bar, one line says what takes so long."""
    if not sys.stderr.isatty():
        size = "" if total is None else f", {total / 1e6:,.1f} MB"
        print(f"fetching {address}{size}", file=sys.stderr, flush=True)
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=address.rpartition("/")[2], unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        yield bar.update
