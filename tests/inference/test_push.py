"""``video-rs push``, with a server on this machine that plays the hub."""

import base64
import hashlib
import http.server
import json
import logging
import shutil
import socket
import threading
import time

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants

import video_rs
from tests.commands import script
from tests.conftest import same
from video_rs import checkpoint
from video_rs.cli import test
from video_rs.cli.common import run
from video_rs.cli.push import main
from video_rs.errors import MachineError, UserError
from video_rs.experiment.config import load_config
from video_rs.inference.predict import Classifier
from video_rs.inference.push import _error, model_card, push, without_folders, write_files
from video_rs.models.registry import create_model

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("bowling", "chess")
CONFIG = """
model: {name: resnet3d_rs_26, width: 0.125}
data: {num_frames: 2, stride: 2, train_size: 32, short_side: 32, test_size: 32, workers: 0}
test: {clips: 1, crops: 1}
train: {device: cpu, threads: 1}
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Create repositories, take uploads with the protocol of git LFS, and serve the files."""

    def do_POST(self):
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)) // (2 if hub.cut in path else 1))
        if hub.cut in path:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if hub.status and hub.status[0] in path:
            self.answer(hub.status[1], {"error": hub.status[2]})
        elif path.startswith("/lfs/"):  # a presigned URL
            hub.objects[hashlib.sha256(body).hexdigest()] = body
            self.answer(200 if path == f"/lfs/{hashlib.sha256(body).hexdigest()}" else 400, {})
        elif self.headers.get("Authorization") != "Bearer hf_secret":
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self.answer(401, {"error": "Invalid username or password."}, message)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in files]
            found = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in zip(files, modes, strict=True)]
            self.answer(200, {"files": found})
        elif path.endswith(".git/info/lfs/objects/batch"):
            href = f"{hub.base}/lfs/{{}}?X-Amz-Signature=secret"
            objects = [
                {**each, "actions": {"upload": {"href": href.format(each["oid"])}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        else:
            self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)

    do_PUT = do_POST

    def create(self, wanted):
        repo = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "me":
            self.answer(403, {"error": f"You don't have the rights to create a model under {wanted['organization']}"})
        elif repo in self.server.repos:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.base}/{repo}"})
        else:
            private = wanted.get("visibility") == "private"
            self.server.repos[repo] = {"private": private, "files": {}, "commits": 0}
            self.answer(200, {"url": f"{self.server.base}/{repo}"})

    def commit(self, repo, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.repos[repo]["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repos[repo]["files"][value["path"]] = self.server.objects[value["oid"]]
        self.server.repos[repo]["commits"] += 1
        self.answer(200, {"commitUrl": f"{self.server.base}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40})

    def do_GET(self):
        repo, _, name = self.path.removeprefix("/api/models").lstrip("/").partition("/resolve/main/")
        found = self.server.repos.get(repo, {"files": {}})
        if self.path.startswith("/api/") and repo in self.server.repos:
            self.answer(200, {"id": repo, "private": found["private"], "siblings": [], "tags": []})
        elif name not in found["files"]:
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound" if repo in self.server.repos else "RepoNotFound"})
        else:
            etag = hashlib.sha1(found["files"][name]).hexdigest()
            self.answer(200, found["files"][name], {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40})

    do_HEAD = do_GET

    def answer(self, status, content, headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.base = f"http://127.0.0.1:{server.server_port}"
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(running, tmp_path, monkeypatch):
    """An empty hub, with a token to write to it and no cached files."""
    running.repos, running.objects, running.cut, running.status = {}, {}, "nothing is cut", ()
    settings = {"ENDPOINT": running.base, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": True}
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{running.base}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (settings | {"HF_TOKEN_PATH": str(tmp_path / "no token")}).items():
        monkeypatch.setattr(constants, name, value)  # read from the environment when it was imported
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return running


@pytest.fixture(scope="module")
def job(tmp_path_factory, make_video):
    """A run folder with a checkpoint and its test, on data outside the working folder."""
    folder = tmp_path_factory.mktemp("job")
    for path in (folder / "tiny.yaml", folder / "run" / "config.yaml"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONFIG)
    for name in NAMES:
        make_video(folder / "data" / "test" / name / "0.mp4", num_frames=6)
    settings = [f"data.root={folder / 'data'}", f"out={folder / 'run'}", "train.init_from=https://h/a.pt?t=secret"]
    config = load_config(folder / "tiny.yaml", settings)
    arguments = {"name": config.model.name, "num_classes": len(NAMES), "width": config.model.width}
    model = create_model(**arguments)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    record = {
        "config": config.to_dict(),
        "step": 7,
        "metrics": {"top1": 0.25, "top5": 1.0, "loss": 0.5},
        "weights_from": {"source": f"{folder}/first.pt", "licence": "apache-2.0"},
    }
    state = checkpoint.from_weights(arguments, config.data_config(NAMES), model.state_dict(), **record)
    checkpoint.save(folder / "run" / "best.pt", {**state, "ema": model.state_dict(), "optimizer": {}})
    assert run(test.main, ["--cfg", str(folder / "tiny.yaml"), *settings]) == 0
    return folder


def card_of(hub, repo="me/net"):
    return ModelCard(hub.repos[repo]["files"]["README.md"].decode())


def test_what_is_pushed_is_loaded_with_the_same_predictions(job, hub):
    """The files have the metrics of the test, and no path of this machine or secret of an address."""
    weights, video = job / "run", str(job / "data" / "test" / "chess" / "0.mp4")
    done = script("tools/push_weights.py", "--weights", weights, "--repo", "me/net", "--private")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pushed to {hub.base}/me/net; next: ") and "hf-hub:me/net clip.mp4" in done.stdout
    assert hub.repos["me/net"]["commits"] == 1 and hub.repos["me/net"]["private"]
    assert hub.repos["me/net"]["files"].keys() == {"model.safetensors", "README.md"}

    before, after = (video_rs.load(path, "cpu") for path in (weights / "best.pt", "hf-hub:me/net"))
    assert after.predict(video) == before.predict(video)
    assert same(after.model.state_dict(), before.model.state_dict())
    done = script("tools/predict.py", "--device=cpu", "--weights", "hf-hub:me/net", video)
    assert done.returncode == 0 and before.predict(video)[0].label in done.stdout

    state, card = checkpoint.load_run("hf-hub:me/net"), card_of(hub)
    assert state["config"]["data"]["root"] == "data" and state["config"]["train"]["init_from"] == "https://h/a.pt"
    assert state["weights_from"] == {"source": "first.pt", "licence": "apache-2.0"} and state["step"] == 7
    metrics = json.loads((weights / "test" / "metrics.json").read_text())
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["top-1"].metric_value == metrics["top1"] and results["top-1"].dataset_name == "test split of data"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "video_rs")
    assert card.data.pipeline_tag == "video-classification"
    for text in (
        f"{metrics['top1']:.2%}"[:-1] + " %",
        "2 of 2",
        "first.pt (licence: apache-2.0)",
        "name: resnet3d_rs_26",
    ):
        assert text in card.text
    for content in hub.repos["me/net"]["files"].values():
        assert str(job).encode() not in content and b"secret" not in content


def test_a_second_push_replaces_the_files_in_one_commit(job, hub, tmp_path):
    video_rs.load(job / "run" / "best.pt", "cpu").push("me/net")
    state = checkpoint.load(job / "run" / "best.pt")
    state["ema"] = {name: value + 1 for name, value in state["ema"].items()}
    checkpoint.save(tmp_path / "other.pt", state)
    with pytest.warns(UserWarning, match="^no test metrics on the model card: .*other.pt first$"):
        assert video_rs.load(tmp_path / "other.pt", "cpu").push("me/net") == f"{hub.base}/me/net"
    assert hub.repos["me/net"]["commits"] == 2 and not hub.repos["me/net"]["private"]
    assert same(checkpoint.load_run("hf-hub:me/net")["model"], state["ema"])
    card = card_of(hub)
    assert card.data.eval_results is None and "25.00 %" in card.text and "there is no test report" in card.text


def test_a_damaged_report_is_a_warning(job, hub, tmp_path):
    shutil.copytree(job / "run", tmp_path / "run")
    (tmp_path / "run" / "test" / "metrics.json").write_text("{")
    with pytest.warns(UserWarning, match="test/metrics.json is damaged; run the command test with --weights"):
        push(tmp_path / "run", "me/net")


@pytest.mark.parametrize("repo", ["net", "me/net/x", "me/..x", "https://hf.co/me/net", "me/", "", "x" * 500 + "/y"])
def test_other_names_are_refused(job, hub, repo, capsys):
    assert run(main, ["--weights", str(job / "run"), "--repo", repo]) == 2
    error = capsys.readouterr().err
    assert "is not the name of a repository; use owner/name" in error and len(error) < 200 and error.count("\n") == 1
    assert not hub.repos


CASES = {  # owner, token, answer, exit code, message
    "no token": ("me", "", (), 2, "net: there is no token for the hub; log in with `hf auth login`, or set HF_TOKEN"),
    "wrong token": ("me", "hf_wrong", (), 2, "net: the hub does not accept the token; log in with `hf auth login`"),
    "foreign": ("google", "hf_secret", (), 2, "net: the token may not write there: You don't have the rights to"),
    "missing": ("me", "hf_secret", ("/preupload", 404, "?"), 2, "net: no such repository, or it is not yours"),
    "refused": ("me", "hf_secret", ("/commit", 413, "too big"), 2, "net: the hub refuses the files: too big; correct"),
    "broken": ("me", "hf_secret", ("/commit", 502, "bad gateway"), 3, "net could not be uploaded: "),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_hub_refuses_is_one_line(job, hub, case, monkeypatch, capsys):
    owner, token, hub.status, code, message = CASES[case]
    monkeypatch.setenv("HF_TOKEN", token)
    assert run(main, ["--weights", str(job / "run"), "--repo", f"{owner}/net"]) == code
    out, error = capsys.readouterr()
    assert (
        error.startswith(f"error: {owner}/{message}") and error.count("\n") == 1 and "secret" not in error and not out
    )
    assert not any(each["files"] for each in hub.repos.values())


@pytest.mark.parametrize("place", ["/create", "/preupload", "/lfs/", "/commit"])
def test_a_cut_connection_is_one_line_and_changes_nothing(job, hub, place, monkeypatch, capsys, caplog):
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [caplog.handler])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's library tries again, for 23 seconds
    hub.cut = place
    assert run(main, ["--weights", str(job / "run"), "--repo", "me/net"]) == 3
    out, error = capsys.readouterr()
    assert error.startswith("error: me/net could not be uploaded: ") and error.endswith("; try again\n")
    assert error.count("\n") == 1 and "secret" not in error and not out
    assert not caplog.records  # notes on retries, with the secret of the upload's address
    assert not any(each["files"] for each in hub.repos.values())


def test_no_server(job, hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://me:secret@127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(MachineError, match="^me/net could not be uploaded: .*refused; try again$"):
            push(job / "run", "me/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(UserError, match="^me/net cannot be pushed while HF_HUB_OFFLINE is set; unset it$"):
        push(job / "run", "me/net")
    monkeypatch.undo()
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    "status, message", [(403, "the token may not write there"), (404, "the hub has no Xet storage")]
)
def test_a_hub_that_refuses_xet(status, message):
    """The text is that of hf_xet, which reports no status."""
    text = f"Network error: Request error: HTTP status client error ({status} x), domain: http://h/xet-write-token/main"
    assert str(_error("me/net", ConnectionError(text))).startswith(f"me/net: {message}")


def test_a_private_push_does_not_reach_a_public_repository(job, hub):
    push(job / "run", "me/net")
    with pytest.raises(UserError, match="^me/net exists and is public; make it private on its page, or push without"):
        push(job / "run", "me/net", private=True)
    assert hub.repos["me/net"]["commits"] == 1


def test_other_weights_than_those_of_the_file_are_refused(job, hub):
    classifier = video_rs.load(job / "run", "cpu")
    with torch.no_grad():
        classifier.model.head.bias += 1
    with pytest.raises(UserError, match="run: the weights of the classifier were changed; save them"):
        classifier.push("me/net")
    with pytest.raises(UserError, match="^only a checkpoint can be pushed; save one"):
        Classifier(classifier.model).push("me/net")
    assert not hub.repos


def test_the_card_of_hostile_texts(job, tmp_path):
    """Names of classes and sources cannot add Markdown, HTML or metadata."""
    state = checkpoint.load_run(job / "run")
    state["data_config"] = {**state["data_config"], "class_names": ["<img src=x>", "a\n---\n# b\u202e"]}
    source = "hf-hub:a/b\n\n# x <script>"
    first = {"source": "https://me:secret@h/a.pt?b=secret", "licence": "CC <By>\n4"}
    state["weights_from"] = {"source": source, "licence": first["licence"], "weights_from": first}
    state["config"]["train"]["wandb"] = "</pre>\n\n# x"
    checkpoint.save(tmp_path / "a.pt", state)
    assert run(main, ["--weights", str(tmp_path / "a.pt"), "--repo", "me/net", "--out", str(tmp_path / "out")]) == 0
    with pytest.raises(UserError, match="out/model.safetensors exists; give another folder"):
        write_files(tmp_path / "out", tmp_path / "a.pt", "me/net")
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "other" and card.data.license_name == "cc-by-4"
    assert "<img" not in text and "<script" not in text and "\n# b" not in text and "\u202e" not in text
    assert text.count("</pre>") == 1 and "secret" not in text and "https://h/a.pt" in text
    assert (
        checkpoint.load(tmp_path / "out" / "model.safetensors")["weights_from"]["weights_from"]["source"]
        == "https://h/a.pt"
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/home/jane doe/data/k400.csv", "k400.csv"),
        ("~/data", "data"),
        ("../../jane/x.pt", "x.pt"),
        ("val split of /home/jane/k400: 4 files", "val split of k400: 4 files"),
        ("data/motion", "data/motion"),
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("https://me:secret@h/a/b.pt?token=secret", "https://h/a/b.pt"),
    ],
)
def test_folders_of_the_machine_are_removed(text, expected):
    assert without_folders(text) == expected


@pytest.mark.parametrize("num_classes, use", [(3, "predict"), (0, "embed")])
def test_the_card_of_image_networks_and_of_converted_weights(num_classes, use):
    network = create_model("resnet_rs_50", width=0.125, num_classes=num_classes)
    state = checkpoint.from_weights({"name": "resnet_rs_50"}, network.data_config, {})
    card = ModelCard(model_card(network, state, "me/net"))
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert card.data.pipeline_tag == "image-classification" and "random weights" in card.text
    assert f'clf.{use}("image.jpg")' in card.text and ("video-rs predict" in card.text) == (use == "predict")
    assert "## Metrics" not in card.text and "Recipe" not in card.text
