"""``create_model(..., pretrained=True)``, with timm's download code and a local server in place of the hub."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save

from video_rs.data_config import IMAGENET_MEAN
from video_rs.models.weights.state_dict import from_timm

timm = pytest.importorskip("timm")

FILE = "/timm/resnetrs50.tf_in1k/resolve/main/model.safetensors"
PROGRAM = """
import sys, torch
from video_rs.cli.common import run
from video_rs.models.registry import create_model

def main(arguments):
    images, out, names = arguments[0], arguments[1], arguments[2:]
    torch.set_num_threads(1)
    results = {}
    for name in names:
        model = create_model(name, pretrained=True, num_classes=1000).eval()
        x = torch.load(images)
        x = x if name.startswith("resnet_rs") else x[:, :, None].expand(-1, -1, 4, -1, -1)
        with torch.inference_mode():
            results[name] = {"logits": model(x), "mean": model.data_config.mean, "state": model.state_dict()}
    torch.save(results, out)

sys.exit(run(main, sys.argv[1:]))
"""


class Hub(http.server.ThreadingHTTPServer):
    """Answers as huggingface.co does for one file, named by its checksum; ``asked`` lists the requests for it."""

    def __init__(self, content: bytes, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.status, self.asked = content, status, []
        self.etag = hashlib.sha256(content).hexdigest()
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = self.path == FILE
        content = self.server.content if found and self.server.status == 200 else b""
        if found:
            self.server.asked.append(self.command)
        self.send_response(self.server.status if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{self.server.etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def create(folder, address: str, *names: str) -> subprocess.CompletedProcess:
    """Create networks in another process, with its cache in ``folder``; their results are in ``folder/out.pt``."""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    env.pop("HF_HUB_OFFLINE", None)
    arguments = [str(folder / "images.pt"), str(folder / "out.pt"), *names]
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def weights() -> torch.nn.Module:
    """timm's network with random weights. Every block contributes; batch norm has the statistics of a batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model("resnetrs50")
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.uniform_(parameter, 0.1, 0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.slow
def test_public_weights_are_fetched_once_and_give_timms_logits(weights, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    with torch.inference_mode():
        expected = weights(images)
    with serving(Hub(save(weights.state_dict()))) as hub:
        done = create(tmp_path, hub.address, "resnet_rs_50", "resnet3d_rs_50")
        assert done.returncode == 0, done.stderr
        assert hub.asked.count("GET") == 1 and hub.asked.count("HEAD") > 1  # for the second it was in the cache
    results = torch.load(tmp_path / "out.pt")

    state = from_timm(weights.state_dict())
    image, video = results["resnet_rs_50"], results["resnet3d_rs_50"]
    assert image["state"].keys() == state.keys()
    assert all(torch.equal(image["state"][name], state[name]) for name in state)
    assert (image["logits"] - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (video["logits"] - expected).abs().max() < 2e-5 * expected.abs().max()
    assert image["mean"] == video["mean"] == IMAGENET_MEAN

    done = create(tmp_path, hub.address, "resnet_rs_50")  # another process, and the server is gone
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt")["resnet_rs_50"]["logits"], image["logits"])


def assert_one_line(done: subprocess.CompletedProcess) -> None:
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 3, done.stderr
    assert last.startswith("error: the public weights of timm/resnetrs50 could not be downloaded: ") and len(last) > 80
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_hub_that_refuses_is_one_line(tmp_path):
    with serving(Hub(b"", status=403)) as hub:
        assert_one_line(create(tmp_path, hub.address, "resnet_rs_50"))


@pytest.mark.exhaustive
def test_a_hub_that_is_not_there_is_one_line(tmp_path):
    """The hub's client retries for three quarters of a minute."""
    with serving(Hub(b"")) as hub:
        pass
    assert_one_line(create(tmp_path, hub.address, "resnet_rs_50"))
