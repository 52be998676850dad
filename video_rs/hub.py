"""Fetch files by address and cache them: ``fetch("https://host/best.pt")`` returns the path of a local copy.

``hf-hub:owner/name`` goes through huggingface_hub, with its cache (``HF_HOME``), its token (``hf auth login`` or
``HF_TOKEN``), ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``.

Web addresses are fetched with urllib, because no library verifies its cache, limits size and time and redacts secrets.
Each copy is in a folder of ``$VIDEO_RS_CACHE``, else ``$XDG_CACHE_HOME/video_rs``, else ``~/.cache/video_rs``, next to
its checksum in the format of ``sha256sum --check``. Every use verifies the checksum. A file that changes at its address
is not fetched again: give new weights a new name, or append their checksum to the address.

Queries and logins may hold secrets. No message contains them; the config and checkpoints of a run keep
``train.init_from`` unchanged.
"""

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

TIMEOUT = 30.0  # seconds without data
CHUNK = 1 << 20  # bytes
MAX_BYTES = 20e9
MAX_SECONDS = 2 * 3600
HUB_FILE = "model.safetensors"

_SCHEMES = ("http", "https")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|hf-hub:", re.IGNORECASE)
_SECRETS = re.compile(  # a login with any characters, and a query
    r"(?<=://)(?:[^/]*\?[^/]*@.*|[^/?#]*@|[^/@\[]*:(?!\d*(?:[/?#]|$)).*)|\?[^#]*"
)
_HUB = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^?#]+))?")


def is_address(text: str | Path) -> bool:
    """Return True for an address, False for a path on this machine."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def redact_url(address: str | Path) -> str:
    """Return an address, or a text with one, without login and query. Other text is unchanged."""
    text = str(address)
    return _SECRETS.sub("", text) if _SCHEME.search(text) else text


def fetch(address: str | Path) -> Path:
    """Return the path of a file; fetch it first if it is an address without a valid copy in the cache.

    Args:
        address: a path, returned unchanged; ``https://`` or ``http://``; or ``hf-hub:owner/name``, optionally with
            ``@revision`` (default: ``main``) and ``/path/of/file`` (default: ``model.safetensors``). An address may
            end in ``#sha256=...``, the checksum of the file.

    Raises:
        UserError: the address is invalid, has no file, requires a login or redirects to another protocol, or the file
            is too large or has another checksum.
        MachineError: the network, the server or the disk failed. The cache is unchanged.
    """
    if not is_address(address):
        return Path(address)
    url, _, fragment = str(address).partition("#")
    expected = fragment.removeprefix("sha256=").lower()
    if fragment and not re.fullmatch("sha256=[0-9a-fA-F]{64}", fragment):
        raise UserError(f"{redact_url(address)}: the part after # must be sha256= and 64 hexadecimal digits")
    if url.lower().startswith("hf-hub:"):
        path = _from_hub(url)
        if expected:
            _compare(redact_url(url), _sha256(path), expected)
        return path
    path = _cached_path(url, expected)
    try:
        if not _is_intact(path, expected):
            with locked(path.parent, wait=True):
                if not _is_intact(path, expected):  # another process may have fetched it
                    _download(url, path, expected)
    except OSError as error:
        raise MachineError(
            f"{error.filename or path.parent} cannot be used: {error.strerror}; set another cache folder with "
            "VIDEO_RS_CACHE"
        ) from None
    return path


@contextlib.contextmanager
def fetched(address: str | Path) -> Iterator[Path]:
    """Run a block that reads the file of :func:`fetch`. If it raises UserError, remove the file from the cache."""
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
    """Return the folder of fetched files; it may not exist."""
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
        raise UserError(f"{redact_url(address)} is invalid: use hf-hub:owner/name or hf-hub:owner/name@revision/file")
    where = {"repo_id": match["repo"], "filename": match["file"] or HUB_FILE, "revision": match["revision"] or "main"}
    failure = None
    try:  # a single request first: hf_hub_download retries for 23 seconds if no server answers
        hub.get_hf_file_metadata(hub.hf_hub_url(**where))
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise _hub_error(address, error) from None
    except Exception as error:  # of the hub, its http library or the system; the file may be in the cache
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
        errors.RemoteEntryNotFoundError: f"does not exist: there is no such file; the default is {HUB_FILE}",
        errors.HFValidationError: f"is invalid: {first_line(error)}",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return UserError(f"{address} {reason}")
    return _not_fetched(address, redact_url(first_line(error)))


def _not_fetched(name: str, reason: str, advice: str = "try again") -> MachineError:
    return MachineError(f"{name} could not be fetched: {reason}; {advice}")


# The cache of web addresses -----------------------------------------------------------------------------------------


def _cached_path(url: str, checksum: str) -> Path:
    """Return the path of the copy of an address. Raise UserError if the address is invalid."""
    try:
        quoted = urllib.parse.quote(url, safe=string.punctuation)
        parts = urllib.parse.urlsplit(quoted)
        valid = parts.scheme.lower() in _SCHEMES and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # from brackets, an invalid port or bytes that are not UTF-8
        valid = False
    if not valid:
        raise UserError(f"{redact_url(url)} is invalid: use https://, http:// without a login, or hf-hub:")
    name = urllib.parse.unquote(parts.path).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-100:].lstrip(".") or "weights"
    return cache_folder() / hashlib.sha256(f"{quoted}#{checksum}".encode()).hexdigest()[:16] / name


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _is_intact(path: Path, checksum: str) -> bool:
    """Return True if there is a copy with its recorded checksum and the one in the address."""
    try:
        recorded, found = _checksum_file(path).read_bytes().split()[:1], _sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return recorded == [found.encode()] and checksum in ("", found)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(name: str, found: str, expected: str) -> None:
    if expected not in ("", found):
        raise UserError(f"{name} has another checksum: its sha256 is {found}, not {expected}; it is not used")


def _download(url: str, path: Path, checksum: str) -> None:
    """Fetch a file and write its checksum."""
    if path.exists():
        print(f"{path} is damaged: wrong checksum; fetching it again", file=sys.stderr, flush=True)
    for unfinished in path.parent.glob(".*"):  # left by a killed process
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
    """Follow redirects to https, or from http to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        start, end = (urllib.parse.urlsplit(url).scheme.lower() for url in (req.full_url, newurl))
        if end not in _SCHEMES or (start, end) == ("https", "http"):
            raise UserError(
                f"{redact_url(req.full_url)} redirects to {redact_url(newurl)}: only https, or http to http, is allowed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(url: str) -> Iterator[bytes]:
    """Yield the file at an address, within the limits of size and time.

    The time is checked between reads. Headers that arrive slowly are not detected.
    """
    from video_rs import __version__

    name, end, done = redact_url(url), time.monotonic() + MAX_SECONDS, 0
    by_hand = "download it yourself and give its path"
    headers = {"User-Agent": f"video_rs/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(urllib.parse.quote(url, safe=string.punctuation), headers=headers)
    with _failures(name):
        response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    print(f"fetching {name}" + (f", {total / 1e6:,.1f} MB" if total else ""), file=sys.stderr, flush=True)
    with response, contextlib.closing(Bar(total, name.rpartition("/")[2], of_bytes=True)) as bar:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{name} is a web page, not a file of weights; use the address of the file itself")
        while True:
            if max(done, total or 0) > MAX_BYTES:
                raise UserError(f"{name} has more than {MAX_BYTES / 1e9:g} GB; {by_hand}")
            if time.monotonic() > end:
                raise MachineError(f"{name} could not be fetched in {MAX_SECONDS / 60:g} minutes; {by_hand}")
            with _failures(name):
                chunk = response.read1(CHUNK)  # returns as soon as data arrive
            if not chunk:
                break
            done += len(chunk)
            bar.advance(len(chunk))
            yield chunk
    if not done or (total is not None and done < total):
        raise _not_fetched(name, f"connection closed after {done:,} of {total or 0:,} bytes")


@contextlib.contextmanager
def _failures(name: str) -> Iterator[None]:
    """Turn errors of the network into one line. Wraps network calls only: disk errors belong to ``atomic_write``."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"HTTP {error.code} {error.reason}".splitlines()[0]
        if error.code in (401, 403, 404, 410):
            login = ", or requires a login" if error.code in (401, 403) else ""
            raise UserError(f"{name} does not exist{login}: {answer}") from None
        raise _not_fetched(name, answer, "try later") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        timed_out = isinstance(reason, TimeoutError)
        text = f"no answer within {TIMEOUT:g} seconds" if timed_out else first_line(reason)
        raise _not_fetched(name, text) from None
