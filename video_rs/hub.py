"""Files by address, fetched once: ``fetch("https://host/best.pt")`` is the path of a copy on this machine.

``hf-hub:owner/name`` goes through huggingface_hub, with its cache (``HF_HOME``), its token (``hf auth login`` or
``HF_TOKEN``), ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``.

The copy of a web address and its checksum, as ``sha256sum --check`` reads it, lie in a folder for each address in
``$VIDEO_RS_CACHE``, else ``$XDG_CACHE_HOME/video_rs``, else ``~/.cache/video_rs``. Every use compares the two. A file
that changes at its address is not noticed: give changed weights another name, or append their checksum. The size of a
file and the time it takes are limited.

No library checks what it kept, limits size and time and keeps secrets out of its messages, so web addresses are fetched
with the standard library's urllib. Queries and logins may hold secrets: no message shows them. (A run's own config and
checkpoints keep ``train.init_from`` as it was given.)
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import string
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from video_rs.errors import MachineError, UserError, first_line
from video_rs.files import LOCK, atomic_write, locked
from video_rs.terminal import Bar

TIMEOUT = 30.0  # seconds of silence
CHUNK = 1 << 20  # bytes
MAX_BYTES = 20e9
MAX_SECONDS = 2 * 3600
NAME_BYTES = 100
HUB_FILE = "model.safetensors"

_SCHEMES = ("http", "https")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|hf-hub:", re.IGNORECASE)
_SECRETS = re.compile(  # a login, whatever characters are in it, and a query
    r"(?<=://)(?:[^/]*\?[^/]*@.*|[^/?#]*@|[^/@\[]*:(?!\d*(?:[/?#]|$)).*)|\?[^#]*"
)
_HUB = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^?#]+))?")


def is_address(text: str | Path) -> bool:
    """Return whether this is something to fetch rather than a file of this machine."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def redact_url(address: str | Path) -> str:
    """Return a path as it is, and an address, or a text that has one, without its login and its query."""
    text = str(address)
    return _SECRETS.sub("", text) if _SCHEME.search(text) else text


def fetch(address: str | Path) -> Path:
    """Return the path of a file, which is fetched first where it is an address and not yet here.

    Args:
        address: a path, which is returned as it is; ``https://`` or ``http://``; or ``hf-hub:owner/name`` with an
            ``@revision`` (default: ``main``) and ``/path/of/file`` (default: ``model.safetensors``) after it.
            ``#sha256=...`` at its end says what the file must be.

    Raises:
        UserError: the address is not valid, has no file, needs a login or redirects to another protocol, or the file
            is too large or has another checksum.
        MachineError: the network, the other machine or the disk failed. What was in the cache is intact.
    """
    if not is_address(address):
        return Path(address)
    url, _, fragment = str(address).partition("#")
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not checksum:
        raise UserError(f"{redact_url(address)}: what follows the # must be sha256= and 64 hexadecimal digits")
    expected = checksum[1].lower() if checksum else ""
    if url.lower().startswith("hf-hub:"):
        path = _from_hub(url)
        if expected:
            _compare(redact_url(url), _sha256(path), expected)
        return path
    path = _place(url, expected)
    try:
        if not _is_intact(path, expected):
            with locked(path.parent, wait=True):
                _refresh(url, path, expected)
    except OSError as error:
        raise MachineError(
            f"{error.filename or path.parent} cannot be used: {error.strerror}; name another folder for fetched files "
            "with VIDEO_RS_CACHE"
        ) from None
    return path


@contextlib.contextmanager
def fetched(address: str | Path) -> Iterator[Path]:
    """:func:`fetch` for a block that reads the file: with its UserError, what was fetched is not kept."""
    file = fetch(address)
    try:
        yield file
    except UserError as error:
        if not is_address(address):
            raise
        message = str(error).replace(str(file), redact_url(address))
        if file.is_relative_to(cache_folder()):
            _checksum_file(file).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            message += "; it was fetched and not kept"
        raise UserError(message) from None


def cache_folder() -> Path:
    """Return where fetched files are kept. It need not exist."""
    if folder := os.environ.get("VIDEO_RS_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "video_rs"


def _from_hub(address: str) -> Path:
    """Return the path of a file in huggingface_hub's cache."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    match = _HUB.fullmatch(address)
    if not match:
        raise UserError(
            f"{redact_url(address)} is no address: write hf-hub:owner/name, or hf-hub:owner/name@revision/file"
        )
    where = {"repo_id": match["repo"], "filename": match["file"] or HUB_FILE, "revision": match["revision"] or "main"}
    failure = None
    try:  # one request without its retries, which take 23 seconds where no server answers
        hub.get_hf_file_metadata(hub.hf_hub_url(**where))
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise _hub_error(address, error) from None
    except Exception as error:  # of the hub, of its http library, of the system: a copy in the cache is as good
        failure = error
    try:
        return Path(hub.hf_hub_download(**where, local_files_only=failure is not None))
    except Exception as error:
        raise _hub_error(address, failure or error) from None


def _hub_error(address: str, error: Exception) -> Exception:
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    reasons = {  # subclasses first
        errors.GatedRepoError: f"is gated: accept its terms on its page, and {login}",
        errors.RepositoryNotFoundError: f"does not exist, or is private: check the name, or {login}",
        errors.RevisionNotFoundError: "does not exist: there is no such revision",
        errors.OfflineModeIsEnabled: "is not in the hub's cache, and HF_HUB_OFFLINE is set: fetch it while online",
        errors.RemoteEntryNotFoundError: f"does not exist: there is no such file; without a name it is {HUB_FILE}",
        errors.HFValidationError: f"is no address: {first_line(error)}",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return UserError(f"{address} {reason}")
    return MachineError(f"{address} could not be fetched: {redact_url(first_line(error))}; try again")


# The cache of web addresses -----------------------------------------------------------------------------------------


def _place(url: str, checksum: str) -> Path:
    """Return where the copy of an address lies. Raise UserError where it is none."""
    try:
        quoted = urllib.parse.quote(url, safe=string.punctuation)
        parts = urllib.parse.urlsplit(quoted)
        right = parts.scheme.lower() in _SCHEMES and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # brackets, a port that is no number, bytes that are not UTF-8
        right = False
    if not right:
        raise UserError(
            f"{redact_url(url)} is no address to fetch from: only https://, http:// and hf-hub: are, without a login"
        )
    name = urllib.parse.unquote(parts.path).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-NAME_BYTES:].lstrip(".") or "weights"
    return cache_folder() / hashlib.sha256(f"{quoted}#{checksum}".encode()).hexdigest()[:16] / name


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _is_intact(path: Path, checksum: str) -> bool:
    """Return whether a copy is there, is what was once fetched, and is what was asked for."""
    try:
        recorded, found = _checksum_file(path).read_text(encoding="utf-8", errors="replace").split()[:1], _sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return recorded == [found] and checksum in ("", found)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(name: str, found: str, expected: str) -> None:
    if expected not in ("", found):
        raise UserError(f"{name} is not the file it should be: its sha256 is {found}, not {expected}; it is not used")


def _refresh(url: str, path: Path, checksum: str) -> None:
    """Fetch a file and its checksum, unless another process did while this one waited."""
    if _is_intact(path, checksum):
        return
    if path.exists():
        print(f"{path} is damaged, its checksum is wrong; fetching it again", file=sys.stderr, flush=True)
    for unfinished in path.parent.glob(".*"):  # what a killed process was writing
        if unfinished.name != LOCK:
            unfinished.unlink()
    digest = hashlib.sha256()
    with atomic_write(path) as handle:
        for chunk in _chunks(url):
            digest.update(chunk)
            handle.write(chunk)
        _compare(redact_url(url), digest.hexdigest(), checksum)
        with atomic_write(_checksum_file(path), "w") as beside:
            beside.write(f"{digest.hexdigest()}  {path.name}\n")


# The network --------------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows them to where a file of weights may come from."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        start, end = (urllib.parse.urlsplit(url).scheme.lower() for url in (req.full_url, newurl))
        if end not in _SCHEMES or (start, end) == ("https", "http"):
            raise UserError(
                f"{redact_url(req.full_url)} leads to {redact_url(newurl)}: only https, or http to http, is followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(url: str) -> Iterator[bytes]:
    """Yield the whole file at an address, within the limits, or raise an error.

    The time is checked between reads. A server that sends its headers byte by byte is not noticed.
    """
    from video_rs import __version__

    name, end, done = redact_url(url), time.monotonic() + MAX_SECONDS, 0
    by_hand = "fetch it by other means, and give its path"
    headers = {"User-Agent": f"video_rs/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(urllib.parse.quote(url, safe=string.punctuation), headers=headers)
    with _failures(name):
        response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    size = "" if total is None else f", {total / 1e6:,.1f} MB"
    print(f"fetching {name}{size}", file=sys.stderr, flush=True)
    with response, contextlib.closing(Bar(total, name.rpartition("/")[2], of_bytes=True)) as bar:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{name} is a web page, not a file of weights; give the address of the file itself")
        while True:
            if max(done, total or 0) > MAX_BYTES:
                raise UserError(f"{name} has more than {MAX_BYTES / 1e9:g} GB; {by_hand}")
            if time.monotonic() > end:
                raise MachineError(f"{name} could not be fetched in {MAX_SECONDS / 60:g} minutes; {by_hand}")
            with _failures(name):
                chunk = response.read1(CHUNK)  # returns what has arrived, so that the time is checked
            if not chunk:
                break
            done += len(chunk)
            bar.advance(len(chunk))
            yield chunk
    if not done or (total is not None and done < total):
        raise MachineError(
            f"{name} could not be fetched: the connection ended after {done:,} of "
            f"{'all' if total is None else format(total, ',')} bytes; try again"
        )


@contextlib.contextmanager
def _failures(name: str) -> Iterator[None]:
    """Turn whatever the network may do into one line. The disk's errors pass: they are ``atomic_write``'s."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"HTTP {error.code} {error.reason}".splitlines()[0]
        if error.code in (401, 403, 404, 410):
            login = ", or wants a login" if error.code in (401, 403) else ""
            raise UserError(f"{name} does not exist{login}: {answer}") from None
        raise MachineError(f"{name} could not be fetched: {answer}; try later") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        timed_out = isinstance(reason, TimeoutError)
        text = f"no answer within {TIMEOUT:g} seconds" if timed_out else first_line(reason)
        raise MachineError(f"{name} could not be fetched: {text}; try again") from None
