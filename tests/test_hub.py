"""Fetch files from a server on this machine, with real sockets and files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from video_rs import checkpoint, hub
from video_rs.cli import convert
from video_rs.cli.common import run
from video_rs.errors import MachineError, UserError
from video_rs.hub import cache_folder, fetch

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve ``server.files``. Some names stand for an error."""

    def do_GET(self):
        self.server.asked[self.path] += 1
        self.server.headers = self.headers
        name = self.path.rpartition("/")[2]
        if name == "moved.pt":
            self.send_response(302)
            self.send_header("Location", "/best.pt")
            self.end_headers()
        elif name.startswith("away"):
            self.send_response(int(name[4:7]))
            self.send_header(*self.server.away)
            self.end_headers()
        elif name == "circle.pt":
            self.send_response(302)
            self.send_header("Location", "/circle.pt")
            self.end_headers()
        elif name.startswith("error"):
            self.send_error(int(name[5:8]))
        elif name == "silent.pt":
            self.server.release.wait(20)
        elif name == "drip.pt":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while not self.server.release.wait(0.01):
                    self.wfile.write(b"x")
        elif "/resolve/" in self.path:
            self.answer_as_hub(*self.path.lstrip("/").split("/resolve/"))
        elif self.path in self.server.files:
            self.answer(self.server.files[self.path], name)
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer_as_hub(self, repo, place):
        status, code, headers = 200, "", {"ETag": f'"{hashlib.sha1(self.path.encode()).hexdigest()}"'}
        if repo == "me/down":
            status = 500
        elif repo != "me/my.net":
            status, code = (403, "GatedRepo") if repo == "me/gated" else (404, "RepoNotFound")
        elif self.path not in self.server.files:
            status, code = 404, "EntryNotFound" if place.startswith("main/") else "RevisionNotFound"
        content = self.server.files[self.path] if status == 200 else b""
        self.send_response(status)
        headers |= {"X-Repo-Commit": "1" * 40, "X-Error-Code": code, "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if place.endswith("cut.pt") else content)

    def answer(self, content, name):
        self.send_response(200)
        if name == "page.pt":
            self.send_header("Content-Type", "text/html; charset=utf-8")
        if name != "unsized.pt":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name.startswith("slow"):
            time.sleep(0.5)
        self.wfile.write(content[: len(content) // 2] if name == "cut.pt" else content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.release = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """The server without requests so far, and an empty cache in ``tmp_path/cache``."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VIDEO_RS_CACHE", str(tmp_path / "cache"))
    names = ("best.pt", "cut.pt", "page.pt", "unsized.pt", "slow.pt", "a%20b.pt")
    running.files = {f"/{name}": CONTENT for name in names} | {"/empty.pt": b""}
    running.asked = Counter()
    running.base = f"http://127.0.0.1:{running.server_port}"
    return running


def kept() -> list[Path]:
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def test_a_path_is_a_path(tmp_path, server):
    assert fetch("runs/best.pt") == Path("runs/best.pt") and fetch(tmp_path) == tmp_path
    assert not cache_folder().exists()


def test_fetched_once(server, capsys):
    address = f"{server.base}/best.pt"
    path = fetch(address)
    assert path.name == "best.pt" and path.read_bytes() == CONTENT and cache_folder() in path.parents
    assert fetch(address) == path and server.headers["Accept-Encoding"] == "identity"
    assert server.asked == {"/best.pt": 1}
    assert path.stat().st_mode & 0o777 == (cache_folder().stat().st_mode & 0o666)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fetching {address}, 0.3 MB\n")


def test_the_checksum_beside_it_is_that_of_sha256sum(server):
    path = fetch(f"{server.base}/best.pt")
    assert len(kept()) == 2
    subprocess.run(["sha256sum", "--check", "--strict", "best.pt.sha256"], cwd=path.parent, check=True)


def test_addresses_of_one_name_are_two_files(server):
    server.files["/other/best.pt"] = b"another"
    first, second = fetch(f"{server.base}/best.pt"), fetch(f"{server.base}/other/best.pt")
    assert first.name == second.name and (first.read_bytes(), second.read_bytes()) == (CONTENT, b"another")


@pytest.mark.parametrize("name", ["moved.pt", "unsized.pt", "a b.pt", "a%20b.pt", "best.pt?token=1"])
def test_answers_of_other_kinds(server, name):
    server.files["/best.pt?token=1"] = CONTENT
    assert fetch(f"{server.base}/{name}").read_bytes() == CONTENT


def test_a_damaged_copy_is_fetched_again(server, capsys):
    address = f"{server.base}/best.pt"
    path = fetch(address)
    for damaged in (CONTENT[:-1], CONTENT[:-1] + b"\0", b""):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert fetch(address).read_bytes() == CONTENT
        first = capsys.readouterr().err.splitlines()[0]
        assert first == f"{path} is damaged: wrong checksum; downloading it again"
    assert server.asked == {"/best.pt": 4}
    path.with_name("best.pt.sha256").unlink()  # as a process leaves it that is killed between the two
    assert fetch(address).read_bytes() == CONTENT and server.asked == {"/best.pt": 5}


def test_a_checksum_in_the_address(server):
    with pytest.raises(UserError, match=f"best.pt has a wrong checksum.*{SHA256}.*the file is not used$"):
        fetch(f"{server.base}/best.pt#sha256={'0' * 64}")
    assert kept() == []
    path = fetch(f"{server.base}/best.pt#sha256={SHA256}")
    assert path == fetch(f"{server.base}/best.pt#sha256={SHA256.upper()}") and server.asked == {"/best.pt": 2}
    server.files["/best.pt"] = b"changed"
    changed = hashlib.sha256(b"changed").hexdigest()
    assert fetch(f"{server.base}/best.pt#sha256={changed}").read_bytes() == b"changed"
    assert fetch(f"{server.base}/best.pt").read_bytes() == b"changed"
    assert path.read_bytes() == CONTENT and server.asked == {"/best.pt": 4}  # neither takes the other's place


@pytest.mark.parametrize("name", ["%C3%A9" * 90 + ".pt", "x" * 250 + ".pt", ".x%00.pt", "." * 120 + "a.pt", "%2e%2e"])
def test_names_that_no_disk_refuses(server, name):
    server.files[f"/{name}"] = CONTENT
    path = fetch(f"{server.base}/{name}")
    assert path.read_bytes() == CONTENT and path.parent.parent == cache_folder()
    assert len(path.name.encode()) <= 100 and path.name.isascii() and not path.name.startswith(".")


def test_redirects_to_https_or_from_http_to_http_are_allowed():
    """A redirect from https to http would lose the authentication of the server."""
    for start, end in (("http", "http"), ("http", "https"), ("https", "HTTPS")):
        hub._check_redirect(f"{start}://host/a.pt?t=x", f"{end}://host/b.pt?t=x")
    hub._check_redirect("https://host/a.pt", "//other/b.pt")
    for start, end in (("https", "http"), ("http", "file"), ("https", "ftp")):
        with pytest.raises(UserError, match=rf"^{start}://host/a.pt redirects to {end}://host/b.pt: only https"):
            hub._check_redirect(f"{start}://host/a.pt?t=x", f"{end}://host/b.pt?t=x")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "away",
    [
        "ftp://127.0.0.1/best.pt?token=secret",
        "file:///etc/hosts",
        "file:/etc/hosts",
        "data:text/plain,x",
        "gopher://a/b",
    ]
    + ["hf-hub:me/my.net", "javascript:x", "jar:http://a/b!/c", "http://[1/a.pt"],
)
def test_a_redirect_to_another_scheme_is_exit_code_2(server, capsys, code, away):
    address = f"{server.base}/away{code}.pt"
    for header in ("Location", "URI"):
        server.away = header, away
        argv = ["--weights", address, "--out", "x.pt"]
        assert run(convert.main, argv) == 2 and kept() == []
        shown = away.partition("?")[0]
        message = f"error: {address} redirects to {shown}: only https, or http to http, is allowed\n"
        assert capsys.readouterr().err == message


def test_a_hub_that_redirects_to_another_scheme(server, tmp_path):
    server.files["/me/my.net/resolve/main/away302.pt"] = CONTENT
    for away in ("ftp://127.0.0.1/best.pt", "file:///etc/hosts"):
        server.away = "Location", away
        ((kind, message, *_),) = ask_hub(
            "hf-hub:me/my.net/away302.pt", HF_ENDPOINT=server.base, HF_HOME=str(tmp_path / "home")
        )
        assert kind == "UserError" and f"redirects to {away}: only https, or http to http, is allowed" in message


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Self-signed certificates for 127.0.0.1 and for another host. Each file also holds its key."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, host in (("own", "IP:127.0.0.1"), ("other", "DNS:b.org")):
        file = folder / f"{name}.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=me"]
        made = [*command, "-addext", f"subjectAltName={host}", "-keyout", "-", "-out", "-"]
        file.write_bytes(subprocess.run(made, check=True, capture_output=True).stdout)
    return folder


@contextlib.contextmanager
def tls_server(certificate: Path, files: dict[str, bytes]):
    """Serve files over TLS, and yield the address of the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    server.files, server.asked = files, Counter()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


TRUST = "set SSL_CERT_FILE to a file with the certificates to trust (PEM)"


def test_a_self_signed_certificate_names_the_variable_to_set(server, certificates, monkeypatch, capsys):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with tls_server(certificates / "own.pem", {"/best.pt": CONTENT}) as base:
        assert run(convert.main, ["--weights", f"{base}/best.pt", "--out", "x.pt"]) == 3
        expected = f"the server's certificate is self-signed or of an unknown authority; {TRUST}"
        assert capsys.readouterr().err == f"error: {base}/best.pt could not be downloaded: {expected}\n"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "own.pem"))
        assert fetch(f"{base}/best.pt").read_bytes() == CONTENT
    with tls_server(certificates / "other.pem", {"/best.pt": CONTENT}) as base:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "other.pem"))
        with pytest.raises(MachineError, match="verify failed: IP.*; check the address and the clock of this machine$"):
            fetch(f"{base}/best.pt")


def test_a_hub_with_a_self_signed_certificate(server, certificates, tmp_path):
    certificate = certificates / "own.pem"
    with tls_server(certificate, {"/me/my.net/resolve/main/best.pt": b"weights"}) as base:
        there = {"HF_ENDPOINT": base, "HF_HOME": str(tmp_path / "home"), "SSL_CERT_FILE": ""}
        ((kind, message, *_),) = ask_hub("hf-hub:me/my.net/best.pt", **there)
        assert kind == "MachineError" and message.endswith(f"of an unknown authority; {TRUST}"), message
        there["SSL_CERT_FILE"] = str(certificate)
        ((kind, _, content, _),) = ask_hub("hf-hub:me/my.net/best.pt", **there)
        assert (kind, content) == ("", "weights")


def test_size_and_time_are_limited(server, monkeypatch):
    """``drip.pt`` sends each byte before the timeout."""
    with monkeypatch.context() as patch:
        patch.setattr(hub, "MAX_BYTES", 100e3)
        for name in ("best.pt", "unsized.pt"):
            with pytest.raises(UserError, match=f"/{name} has more than 0.0001 GB; download it yourself"):
                fetch(f"{server.base}/{name}")
    monkeypatch.setattr(hub, "MAX_SECONDS", 0.3)
    with pytest.raises(MachineError, match="/drip.pt could not be downloaded in 0.005 minutes; download it yourself"):
        fetch(f"{server.base}/drip.pt")
    assert kept() == []


def test_what_may_be_secret_is_not_said(server, capsys):
    """Queries can contain tokens."""
    for name in ("gone.pt", "error500.pt", "cut.pt", "best.pt"):
        server.files[f"/{name}?token=secret"] = CONTENT[:10]
        with pytest.raises((UserError, MachineError)) as caught:
            fetch(f"{server.base}/{name}?token=secret#sha256={'0' * 64}")
        assert f"{server.base}/{name} " in str(caught.value) and "secret" not in str(caught.value)
    for address in ("https://h:x/a?token=secret", "https://me:secret@host/a.pt", "https://h/a?token=secret#b"):
        with pytest.raises(UserError) as caught:
            fetch(address)
        assert "secret" not in str(caught.value)
    assert "secret" not in capsys.readouterr().err
    assert hub.redact_url("https://h/a.pt?token=secret#sha256=00") == "https://h/a.pt#sha256=00"
    assert hub.redact_url("runs/a?b.pt") == "runs/a?b.pt" and hub.redact_url(Path("a")) == "a"


@pytest.mark.parametrize(
    "address, expected",
    [
        ("https://me:sec@h/a@1.pt", "https://h/a@1.pt"),
        ("https://me:s?c@h/a.pt", "https://"),
        ("https://me:s/c@h/a.pt", "https://"),
        ("https://me:s#c@h/a.pt", "https://"),
        ("https://me:sec@h/a.pt?mail=a@sec#sha256=00", "https://h/a.pt#sha256=00"),
        ("https://h?mail=a@sec", "https://"),
        ("http://[::1]:80/a.pt?sec", "http://[::1]:80/a.pt"),
        ("train.init_from=https://h:80/a b.pt?a=sec", "train.init_from=https://h:80/a b.pt"),
        ("error 500 for url 'http://me:sec@h/a'", "error 500 for url 'http://h/a'"),
    ],
)
def test_logins_and_queries_are_not_shown(address, expected):
    assert hub.redact_url(address) == expected


ASK = """
import json, sys, time
from video_rs.hub import fetch
for address in sys.argv[1:]:
    start = time.monotonic()
    try:
        answer = ["", str(fetch(address)), open(fetch(address)).read()]
    except Exception as error:
        answer = [type(error).__name__, str(error), ""]
    print(json.dumps([*answer, time.monotonic() - start]))
"""


def ask_hub(*addresses: str, **variables: str) -> list[list]:
    """Return the type of the error, path or message, content and seconds for each address, in a subprocess.

    huggingface_hub reads the endpoint when it is imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", ASK, *addresses], env={**os.environ, **variables}, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub(server, tmp_path):
    paths = ("main/model.safetensors", "main/b/best.pt", "v1.0/best.pt")
    server.files |= {f"/me/my.net/resolve/{path}": path.encode() for path in paths}
    there = {"HF_ENDPOINT": server.base, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    checksum = hashlib.sha256(paths[1].encode()).hexdigest()
    found = ask_hub("hf-hub:me/my.net", f"hf-hub:me/my.net/b/best.pt#sha256={checksum}",
                    "hf-hub:me/my.net@v1.0/best.pt", **there)  # fmt: skip
    assert [(kind, content) for kind, _, content, _ in found] == [("", path) for path in paths]
    assert all(path.startswith(there["HF_HOME"]) for _, path, *_ in found)
    assert server.headers["Authorization"] == "Bearer hf_secret"
    wrong = ask_hub(
        "hf-hub:me/my.net@v2",
        "hf-hub:me/my.net/other.pt",
        "hf-hub:me/gone",
        "hf-hub:me/gated",
        "hf-hub:me/..x",
        f"hf-hub:me/my.net#sha256={'0' * 64}",
        "hf-hub:me/down",
        **there,
    )
    expected = [
        ("UserError", "@v2 does not exist: there is no such revision"),
        ("UserError", "/other.pt does not exist: there is no such file; the default is model.safetensors"),
        ("UserError", "me/gone does not exist, or is private: check the name, or log in with `hf auth login`"),
        ("UserError", "me/gated is gated: accept its terms on its page, and log in"),
        ("UserError", "me/..x is invalid: "),
        ("UserError", "me/my.net has a wrong checksum: sha256 "),
        ("MachineError", "me/down could not be downloaded: "),
    ]
    for (kind, message, _, _), (expected_kind, text) in zip(wrong, expected, strict=True):
        assert kind == expected_kind and text in message and message.startswith("hf-hub:me/"), message
        assert "\n" not in message and "secret" not in message
    endpoint = server.base.replace("://", "://me:secret@")
    ((kind, message, *_),) = ask_hub("hf-hub:me/down", **there | {"HF_ENDPOINT": endpoint})
    assert kind == "MachineError" and "secret" not in message
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = {**there, "HF_ENDPOINT": f"http://127.0.0.1:{free.getsockname()[1]}"}
        for variables in (away, {**there, "HF_HUB_OFFLINE": "1"}):
            (kind, _, content, seconds), missing = ask_hub("hf-hub:me/my.net", "hf-hub:me/new", **variables)
            assert (kind, content) == ("", paths[0]) and seconds < 10  # not the 23 of the hub's retries
            assert missing[3] < 10 and missing[:2] == (
                ["UserError", "hf-hub:me/new is not in the hub's cache, and HF_HUB_OFFLINE is set: download it while "
                 "online"]
                if "HF_HUB_OFFLINE" in variables
                else ["MachineError", "hf-hub:me/new could not be downloaded: [Errno 111] Connection refused; "
                      "try again"]
            )  # fmt: skip


def test_the_network_is_lost_between_the_two_requests_to_the_hub(monkeypatch):
    """The error is not that the file does not exist."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def lost(**_):
        raise LocalEntryNotFoundError("An error happened")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: SimpleNamespace(location=url))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lost)
    with pytest.raises(MachineError, match="^hf-hub:a/b could not be downloaded: An error happened; try again$"):
        fetch("hf-hub:a/b")


@pytest.mark.slow
def test_a_hub_whose_connections_are_cut(server, tmp_path):
    """huggingface_hub would try five times, one second apart."""
    server.files["/me/my.net/resolve/main/cut.pt"] = CONTENT
    ((kind, message, *_),) = ask_hub("hf-hub:me/my.net/cut.pt", HF_ENDPOINT=server.base, HF_HOME=str(tmp_path / "home"))
    assert kind == "MachineError" and message.startswith("hf-hub:me/my.net/cut.pt could not be downloaded: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "address",
    ["hf-hub:me", "hf-hub:", "s3://bucket/best.pt", "file:///etc/hosts", "https://", "https://[1/a.pt", "http://h:x/a"],
)
def test_what_is_no_address(server, address):
    with pytest.raises(UserError, match="is invalid: use"):
        fetch(address)
    with pytest.raises(UserError, match="is invalid: use"):
        fetch("https://host/\udcff.pt")


@pytest.mark.parametrize(
    "name, kind, reason",
    [
        ("gone.pt", UserError, "does not exist: HTTP 404"),
        ("error401.pt", UserError, "does not exist, or requires a login: HTTP 401"),
        ("error500.pt", MachineError, "HTTP 500"),
        ("error503.pt", MachineError, "HTTP 503"),
        ("cut.pt", MachineError, "128,000 of 256,000 bytes"),
        ("empty.pt", MachineError, "after 0 of 0 bytes"),
        ("page.pt", UserError, "is a web page"),
        ("circle.pt", MachineError, "HTTP 302 The HTTP server returned a redirect error"),
        ("silent.pt", MachineError, "no answer within 0.2 seconds"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(server, monkeypatch, capsys, name, kind, reason):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    address = f"{server.base}/{name}"
    with pytest.raises(kind) as caught:
        fetch(address)
    message = str(caught.value)
    assert message.startswith(address) and reason in message and "\n" not in message and "secret" not in message
    assert kept() == []


def test_nobody_answers(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/best.pt"
        with pytest.raises(MachineError, match=f"{address} could not be downloaded: .*refused"):
            fetch(address)
    assert kept() == []


def test_a_failure_leaves_the_folder_to_the_next(server):
    """If the folder were removed while a process waits for its lock, a third process could enter too."""
    address = f"{server.base}/later.pt"
    with pytest.raises(UserError, match="does not exist"):
        fetch(address)
    (folder,) = cache_folder().iterdir()
    server.files["/later.pt"] = CONTENT
    assert fetch(address).parent == folder


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDEO_RS_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="cannot be used.*VIDEO_RS_CACHE"):
        fetch(f"{server.base}/best.pt")


def test_a_copy_that_cannot_be_read(server, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    path = fetch(f"{server.base}/best.pt")
    monkeypatch.setattr(hub, "sha256", denied)
    with pytest.raises(MachineError, match=f"^{path} cannot be used: Permission denied; .*VIDEO_RS_CACHE"):
        fetch(f"{server.base}/best.pt")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VIDEO_RS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "video_rs"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/video_rs")
    monkeypatch.setenv("VIDEO_RS_CACHE", "~/y")
    assert cache_folder() == tmp_path / "y"


FETCH = "import sys; from video_rs.hub import fetch; print(fetch(sys.argv[1]))"


def test_two_processes_at_once_fetch_once(server):
    command = [sys.executable, "-c", FETCH, f"{server.base}/slow.pt"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert paths[0] == paths[1] and Path(paths[0]).read_bytes() == CONTENT
    assert server.asked == {"/slow.pt": 1} and len(kept()) == 2


def test_a_process_that_is_killed_leaves_nothing_that_is_used(server):
    """After SIGKILL during a download, the next use removes the partial file and fetches again."""
    server.files["/slow.pt"] = CONTENT * 100
    program = textwrap.dedent("""
        import os, signal, sys
        from video_rs import hub
        whole = hub._chunks
        def half(url):
            yield next(whole(url))
            os.kill(os.getpid(), signal.SIGKILL)
        hub._chunks = half
        hub.fetch(sys.argv[1])
    """)
    address = f"{server.base}/slow.pt"
    assert subprocess.run([sys.executable, "-c", program, address], capture_output=True).returncode == -9
    assert sorted(path.name[:9] for path in kept()) == [".lock", ".slow.pt."]
    assert fetch(address).read_bytes() == CONTENT * 100
    assert sorted(path.name for path in kept()) == ["slow.pt", "slow.pt.sha256"]


@pytest.mark.usefixtures("one_thread")
def test_weights_by_address(server, tmp_path, capsys, make_video):
    """``video_rs.load`` and ``predict --weights`` accept addresses of both formats."""
    import video_rs
    from video_rs.cli import predict

    arguments = {"name": "resnet3d_rs_26", "num_classes": 2, "width": 0.125}
    data_config = video_rs.create_model(**arguments).data_config.to_dict() | {"num_frames": 2, "test_size": 32}
    state = {"format": 1, "config": {}, "model_args": arguments, "ema": None, "step": 0}
    state |= {"data_config": data_config | {"short_side": 32}, "model": video_rs.create_model(**arguments).state_dict()}
    for suffix in ("pt", "safetensors"):
        checkpoint.save(tmp_path / f"best.{suffix}", state)
        server.files[f"/best.{suffix}"] = (tmp_path / f"best.{suffix}").read_bytes()
    video = str(make_video(tmp_path / "a.mp4", num_frames=6))
    expected = video_rs.load(tmp_path / "best.pt", "cpu").predict(video)
    assert video_rs.load(f"{server.base}/best.pt", "cpu").predict(video) == expected
    capsys.readouterr()
    weights = f"{server.base}/best.safetensors#sha256={hashlib.sha256(server.files['/best.safetensors']).hexdigest()}"
    assert run(predict.main, ["--device", "cpu", "--json", "--weights", weights, video]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [(p["label"], p["score"]) for p in found] == [(p.label, round(p.score, 6)) for p in expected]
    for name, code in (("gone.pt", 2), ("error500.pt", 3)):
        assert run(predict.main, ["--weights", f"{server.base}/{name}", video]) == code
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and f"{server.base}/{name}" in err


def test_what_cannot_be_read_is_not_kept(server):
    address = f"{server.base}/best.pt?token=secret"
    server.files["/best.pt?token=secret"] = b"no weights"
    with pytest.raises(UserError) as error:
        checkpoint.load(address)
    assert str(error.value) == f"{server.base}/best.pt is not a checkpoint; the downloaded file was deleted"
    assert not kept()
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    server.files["/best.pt?token=secret"] = buffer.getvalue()
    assert torch.equal(checkpoint.load(address)["w"], torch.ones(2))


@pytest.mark.usefixtures("one_thread")
def test_the_test_takes_an_address(server, tmp_path, capsys, make_video):
    """``video-rs test weights=...`` prints the address, not the file in the cache."""
    import video_rs
    from video_rs.cli import test
    from video_rs.experiment.config import load_config

    (tmp_path / "tiny.yaml").write_text("""
model: {name: resnet3d_rs_26, width: 0.125}
data: {num_frames: 2, stride: 1, train_size: 32, short_side: 32, test_size: 32, workers: 0}
test: {clips: 1, crops: 1}
train: {device: cpu, threads: 1}
""")
    for name in ("archery", "yoga"):
        make_video(tmp_path / "data" / "test" / name / "0.mp4", num_frames=6)
    arguments = {"name": "resnet3d_rs_26", "num_classes": 2, "width": 0.125}
    data_config = load_config(tmp_path / "tiny.yaml").data_config(("archery", "yoga"))
    state = {"format": 1, "config": {}, "model_args": arguments, "data_config": data_config.to_dict(), "ema": None}
    checkpoint.save(tmp_path / "a.safetensors", {**state, "model": video_rs.create_model(**arguments).state_dict()})
    server.files["/a.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    settings = ["--cfg", f"{tmp_path}/tiny.yaml", f"data.root={tmp_path}/data", f"out={tmp_path}/run"]
    address = f"{server.base}/a.safetensors"
    assert run(test.main, [*settings, f"weights={address}"]) == 0
    out = capsys.readouterr().out
    assert f"from {address}, step" in out and f"--weights {address} " in out and str(cache_folder()) not in out
    (report,) = (tmp_path / "run").glob("test-*-a-*/report.html")
    assert address in report.read_text()
    server.files["/a.safetensors?token=secret"] = server.files["/a.safetensors"]
    assert run(test.main, [*settings, f"weights={address}?token=secret"]) == 0
    said = capsys.readouterr().out
    assert f"from {address}, step" in said and f"--weights {fetch(f'{address}?token=secret')} " in said
    assert "secret" not in said + report.read_text() and str(report) in said
    assert run(test.main, [*settings, f"weights={address}", "model.width=0.25"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and address in error and "config.yaml" not in error


def test_importing_it_leaves_torch_alone():
    code = "import sys, video_rs.hub; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
