"""Download files and cache them: ``fetch("https://host/best.pt")`` returns the path of a local copy.

``hf-hub:owner/name`` uses huggingface_hub with its cache (``HF_HOME``), its token (``hf auth login`` or ``HF_TOKEN``),
``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``.

Other URLs are downloaded with urllib, because no library verifies its cache, limits size and time and redacts secrets.
Each copy is stored in a folder of ``$VIDEO_RS_CACHE``, else ``$XDG_CACHE_HOME/video_rs``, else ``~/.cache/video_rs``,
next to its checksum in the format of ``sha256sum --check``. The checksum is verified at every use. A file that changes
on the server is not downloaded again: give new weights a new name, or append their checksum to the URL.

The query and the credentials in a URL may contain secrets. Messages do not include them; the config and checkpoints of
a run contain ``train.init_from`` unchanged.
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
from typing import Any

from video_rs.errors import MachineError, UserError, first_line, format_value
from video_rs.files import LOCK, atomic_write, locked
from video_rs.terminal import Bar

TIMEOUT = 30.0  # seconds without data
CHUNK = 1 << 20  # bytes
MAX_BYTES = 20e9
MAX_SECONDS = 2 * 3600
HUB_FILE = "model.safetensors"

_SCHEMES = ("http", "https")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|hf-hub:", re.IGNORECASE)
_SECRETS = re.compile(  # credentials with any characters, and a query
    r"(?<=://)(?:[^/]*\?[^/]*@.*|[^/?#]*@|[^/@\[]*:(?!\d*(?:[/?#]|$)).*)|\?[^#]*"
)
_UNKNOWN_CERTIFICATE = re.compile(
    "certificate verify failed: (self.signed|unable to get|unable to verify)", re.IGNORECASE
)
_HUB = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^?#]+))?")


def is_address(text: str | Path) -> bool:
    """Return True for a URL, False for a local path."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def redact_url(address: str | Path) -> str:
    """Remove credentials and query from URLs in a text. Other text is unchanged."""
    text = str(address)
    return _SECRETS.sub("", text) if _SCHEME.search(text) else text


def format_redacted(value: Any) -> str:
    """Return the repr of a value for a message, without credentials and at most 100 characters long."""
    return format_value(redact_url(value) if isinstance(value, str) else value)


def fetch(address: str | Path) -> Path:
    """Return the path of a file. A URL is downloaded first if the cache has no valid copy.

    Args:
        address: a path, which is returned unchanged; a URL with ``https://`` or ``http://``; or ``hf-hub:owner/name``,
            optionally with ``@revision`` (default: ``main``) and ``/path/of/file`` (default: ``model.safetensors``). A
            URL may end in ``#sha256=...`` with the checksum of the file.

    Raises:
        UserError: the URL is invalid, does not exist, requires a login or redirects to another protocol; or the file is
            too large or has another checksum.
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
            _compare(redact_url(url), sha256(path), expected)
        return path
    path = _cached_path(url, expected)
    try:
        if not _is_intact(path, expected):
            with locked(path.parent, wait=True):
                if not _is_intact(path, expected):  # another process may have downloaded it
                    _download(url, path, expected)
    except OSError as error:
        raise MachineError(
            f"{error.filename or path.parent} cannot be used: {error.strerror}; set another cache folder with "
            "VIDEO_RS_CACHE"
        ) from None
    return path


@contextlib.contextmanager
def fetched(address: str | Path) -> Iterator[Path]:
    """Run a block that reads a file from :func:`fetch`. If it raises UserError, remove the file from the cache."""
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
            message += "; the downloaded file was deleted"
        raise UserError(message) from None


def cache_folder() -> Path:
    """Return the folder of downloaded files, which may not exist. Raise UserError if this user has no home folder."""
    folder, base = os.environ.get("VIDEO_RS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = os.path.expanduser(folder or os.path.join(base or "~/.cache", "video_rs"))
    if folder.startswith("~"):
        raise UserError("no home folder for downloads and indexes; set VIDEO_RS_CACHE to a folder")
    return Path(folder)


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
        url = hub.hf_hub_url(**where)
        _check_redirect(url, hub.get_hf_file_metadata(url).location)
    except UserError:
        raise
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise _hub_error(address, error) from None
    except Exception as error:  # from the hub, its http library or the system; the file may be cached
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
        errors.OfflineModeIsEnabled: "is not in the hub's cache, and HF_HUB_OFFLINE is set: download it while online",
        errors.RemoteEntryNotFoundError: f"does not exist: there is no such file; the default is {HUB_FILE}",
        errors.HFValidationError: f"is invalid: {first_line(error)}",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return UserError(f"{address} {reason}")
    return network_error(address, error)


def network_error(name: str, reason: object, advice: str = "try again", *, action: str = "downloaded") -> MachineError:
    """Return the error for a failed transfer. `reason` is an exception or a text."""
    text = first_line(reason) if isinstance(reason, Exception) else str(reason)
    if _UNKNOWN_CERTIFICATE.search(str(reason)):
        text = "the server's certificate is self-signed or of an unknown authority"
        advice = "set SSL_CERT_FILE to a file with the certificates to trust (PEM)"
    elif "CERTIFICATE_VERIFY_FAILED" in str(reason):  # expired, or for another host
        advice = "check the address and the clock of this machine"
    return MachineError(f"{name} could not be {action}: {redact_url(text)}; {advice}")


# The download cache ---------------------------------------------------------------------------------------------------


def _cached_path(url: str, checksum: str) -> Path:
    """Return the path of the cached copy of a URL. Raise UserError if the URL is invalid."""
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
    """Return True if the cached copy exists and matches its recorded checksum and the checksum in the URL."""
    try:
        recorded, found = _checksum_file(path).read_bytes().split()[:1], sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return recorded == [found.encode()] and checksum in ("", found)


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(name: str, found: str, expected: str) -> None:
    if expected not in ("", found):
        raise UserError(f"{name} has a wrong checksum: sha256 {found}, expected {expected}; the file is not used")


def _download(url: str, path: Path, checksum: str) -> None:
    """Download a file and write its checksum."""
    if path.exists():
        print(f"{path} is damaged: wrong checksum; downloading it again", file=sys.stderr, flush=True)
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


def _check_redirect(start: str, end: str) -> None:
    """Raise UserError for a redirect to another scheme, except from http to https."""
    try:
        schemes = [urllib.parse.urlsplit(url).scheme.lower() for url in (start, urllib.parse.urljoin(start, end))]
    except ValueError:  # unbalanced brackets
        schemes = ["", ""]
    if schemes[1] not in _SCHEMES or schemes == ["https", "http"]:
        raise UserError(f"{redact_url(start)} redirects to {redact_url(end)}: only https, or http to http, is allowed")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https, or from http to http."""

    def http_error_302(self, req, fp, code, msg, headers):
        _check_redirect(req.full_url, headers.get("Location", headers.get("URI", "")))
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _chunks(url: str) -> Iterator[bytes]:
    """Download a URL and yield its content in chunks. Raise an error above the limits of size and time.

    The time is checked between reads, so slow headers are not detected.
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
            raise UserError(f"{name} is a web page, not a file of weights; use the URL of the file itself")
        while True:
            if max(done, total or 0) > MAX_BYTES:
                raise UserError(f"{name} has more than {MAX_BYTES / 1e9:g} GB; {by_hand}")
            if time.monotonic() > end:
                raise MachineError(f"{name} could not be downloaded in {MAX_SECONDS / 60:g} minutes; {by_hand}")
            with _failures(name):
                chunk = response.read1(CHUNK)  # returns as soon as data arrives
            if not chunk:
                break
            done += len(chunk)
            bar.advance(len(chunk))
            yield chunk
    if not done or (total is not None and done < total):
        raise network_error(name, f"connection closed after {done:,} of {total or 0:,} bytes")


@contextlib.contextmanager
def _failures(name: str) -> Iterator[None]:
    """Convert network errors to one line. Use it for network calls only; ``atomic_write`` handles disk errors."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"HTTP {error.code} {error.reason}".splitlines()[0]
        if error.code in (401, 403, 404, 410):
            login = ", or requires a login" if error.code in (401, 403) else ""
            raise UserError(f"{name} does not exist{login}: {answer}") from None
        raise network_error(name, answer, "try later") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        timed_out = isinstance(reason, TimeoutError)
        raise network_error(name, f"no answer within {TIMEOUT:g} seconds" if timed_out else reason) from None
