import base64
import csv
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from video_rs.evaluation.metrics import summarize, summarize_multi_label
from video_rs.evaluation.multiview import Scores
from video_rs.evaluation.plots import confusion_png, curves_png, read_log
from video_rs.evaluation.report import confident_mistakes, thumbnail, write_report

NAMES = ["<b>jump</b>", "run & hide", "price $5 to $9"]
TRAIN = {"kind": "train", "loss": 1.0, "accuracy": 0.5, "lr": 0.1, "clips_per_second": 9.0, "data_wait": 0.1}
VAL = {"kind": "val", "top1": 0.4, "top5": 0.9, "loss": 1.1}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    folder = tmp_path_factory.mktemp("<videos> & 'more'")
    return [str(make_video(folder / f"{i}.mp4", num_frames=8, height=48, width=64)) for i in range(4)]


@pytest.fixture
def scores():
    probs = np.array([[0.7, 0.2, 0.1], [0.9, 0.05, 0.05], [0.1, 0.6, 0.3], [0, 0, 0]], dtype=np.float32)
    views = np.repeat(probs[:, None], 2, axis=1).astype(np.float16)
    return Scores(probs, np.array([0, 1, 2, 0]), np.array([1, 1, 1, 0], bool), views, [(3, "<i>empty</i>")])


def report(folder, videos, scores, **kwargs):
    metrics = summarize(scores.probs, scores.labels, scores.scored, NAMES)
    return write_report(folder, videos, scores, NAMES, metrics, **kwargs)


def write_log(folder, *records):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder / "metrics.jsonl"


def test_all_files(tmp_path, videos, scores):
    log = write_log(tmp_path / "run", TRAIN | {"step": 1, "epoch": 0.5}, VAL | {"step": 2, "epoch": 1})
    page = report(tmp_path / "test", videos, scores, run_dir=log.parent, title="<run>", about={"weights": "<w>"})
    expected = ["confusion.png", "curves.png", "metrics.json", "predictions.csv", "report.html", "views.npz"]
    assert sorted(p.name for p in page.parent.iterdir()) == expected  # no temporary files either
    views = np.load(page.parent / "views.npz")
    np.testing.assert_array_equal(views["views"], scores.views)
    assert views["paths"].tolist() == videos


def test_predictions(tmp_path, videos, scores):
    page = report(tmp_path, videos, scores)
    rows = list(csv.DictReader(io.StringIO((page.parent / "predictions.csv").read_text())))
    assert [row["path"] for row in rows] == videos
    assert [row["correct"] for row in rows] == ["1", "0", "0", "0"]
    assert (rows[2]["label"], rows[2]["predicted"]) == (NAMES[2], NAMES[1])
    assert (rows[2]["class_2"], rows[2]["prob_2"]) == (NAMES[2], "0.300000")
    assert (rows[3]["scored"], rows[3]["predicted"], rows[3]["error"]) == ("0", "", "<i>empty</i>")


def test_metrics_json_is_strict_json(tmp_path, videos, scores):
    scores.scored[:] = [True, False, False, False]  # two classes without a scored video: NaN accuracies
    page = report(tmp_path, videos, scores)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    metrics = json.loads((page.parent / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["per_class"][1]["accuracy"] is None and metrics["top1"] == 1.0
    assert metrics["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("multi_label", [False, True])
def test_files_for_other_programs_are_documented(tmp_path, videos, scores, multi_label):
    if multi_label:
        scores.labels = np.eye(3, dtype=bool)[scores.labels]
    report(tmp_path, videos, scores)
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    header = (tmp_path / "predictions.csv").read_text().splitlines()[0].split(",")
    names = [*metrics, *metrics["per_class"][0], *(name for name in header if name[-1] not in "23")]
    assert metrics["version"] == 1 and len(names) > 18
    assert not [name for name in names if f"`{name.removesuffix('_all')}`" not in page]


def test_page_stands_alone_and_is_escaped(tmp_path, videos, scores):
    page = report(tmp_path, videos, scores, title="<run>", about={"weights": "<w>"}).read_text()
    for raw in ("<b>jump</b>", "run & hide", "<i>empty</i>", "<run>", "<w>", "<videos>"):
        assert raw not in page
    for escaped in ("&lt;b&gt;jump&lt;/b&gt;", "run &amp; hide", "&lt;i&gt;empty&lt;/i&gt;", "&lt;run&gt;"):
        assert escaped in page
    sources = re.findall(r"src='([^']*)'", page)
    assert len(sources) == 3 and all(s.startswith("data:image/") for s in sources)  # 2 mistakes and the matrix
    assert not re.search(r"(href|src)=.?(https?:|/)", page)
    assert "33.33 %" in page and "25.00 %" in page  # top-1 over the scored, and over all


def test_the_most_confident_mistakes_come_first_and_show_frames(videos, scores, frame_numbers):
    first, second = confident_mistakes(videos, scores, NAMES, lambda i: thumbnail(videos[i]))
    assert (first.path, first.labels[0][0], first.predicted) == (videos[1], NAMES[1], NAMES[0])
    assert (second.path, second.labels) == (videos[2], [(NAMES[2], pytest.approx(0.3))])
    strip = np.asarray(Image.open(io.BytesIO(first.jpeg)))
    thirds = [strip[:, i * (149 + 2) : i * (149 + 2) + 149] for i in range(3)]  # 64x48 -> 149x112, 2 pixels between
    assert strip.shape == (112, 3 * 149 + 4, 3) and frame_numbers(np.stack(thirds)) == [2, 4, 6]


def test_pictures_that_fail_lose_no_results(tmp_path, videos, scores):
    """A missing video, an image whose strip is wider than a JPEG can be, and a log that is not text."""
    wide, run_dir, warned = tmp_path / "wide.png", tmp_path / "run", []
    Image.new("RGB", (5000, 8)).save(wide)
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_bytes(b"\xff\xfe")
    paths = [videos[0], str(tmp_path / "go\nne.mp4"), str(wide), videos[3]]
    page = report(tmp_path / "test", paths, scores, run_dir=run_dir, warn=warned.append)
    results = [(page.parent / name).read_bytes() for name in ("predictions.csv", "metrics.json", "confusion.png")]
    assert all(results) and not (page.parent / "curves.png").exists()
    assert len(warned) == 3 and warned[0].startswith("curves.png: not drawn ('utf-8' codec can't decode")
    assert warned[1] == f"{paths[1]}: not drawn (no such file)" and warned[2].startswith(f"{wide}: not drawn (")
    text = page.read_text()
    assert text.count("no picture") == 2 and "Not drawn" in text and "<td>no such file</td>" in text


def test_results_are_there_before_any_picture(tmp_path, videos, scores, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    report(tmp_path, videos, scores)
    monkeypatch.setattr("video_rs.evaluation.report.confusion_png", stop)
    scores.scored[:] = [True, False, False, False]
    with pytest.raises(KeyboardInterrupt):
        report(tmp_path, videos, scores)
    assert json.loads((tmp_path / "metrics.json").read_text())["num_scored"] == 1
    assert not (tmp_path / "report.html").exists()  # the earlier one has other metrics


def test_an_older_report_leaves_nothing_behind(tmp_path, videos, scores):
    log = write_log(tmp_path / "run", TRAIN | {"step": 1, "epoch": 0.5})
    page = report(tmp_path / "test", videos, scores, run_dir=log.parent)
    scores.views = None
    report(tmp_path / "test", videos, scores, run_dir=tmp_path / "no such run")
    assert not (page.parent / "views.npz").exists() and not (page.parent / "curves.png").exists()


def test_a_file_name_that_is_not_utf8(tmp_path, videos, scores):
    odd = [*videos[:1], "\udcff.mp4", *videos[2:]]
    with pytest.warns(UserWarning, match="not drawn"):
        page = report(tmp_path / "test", odd, scores)
    assert "\\udcff.mp4" in page.read_text(encoding="utf-8")
    assert "\\udcff.mp4" in (page.parent / "predictions.csv").read_text(encoding="utf-8")


def test_no_mistakes(tmp_path, videos):
    scores = Scores(np.eye(3, dtype=np.float32), np.arange(3), np.ones(3, bool))
    page = report(tmp_path, videos[:3], scores).read_text()
    assert "No mistakes" in page and "Not scored" not in page and "100.00 %" in page


def test_log_of_an_interrupted_run(tmp_path):
    records = [TRAIN | {"step": s, "epoch": s / 4, "loss": loss} for s, loss in ((2, 3.0), (4, 9.0), (4, 2.0))]
    path = write_log(tmp_path / "run", *records, {"kind": "val", "step": 4, "epoch": 1, "loss": None})
    path.write_text(path.read_text() + '\n{"kind": "tra')
    log = read_log(path)
    assert log["train"]["step"].tolist() == [2, 4] and log["train"]["loss"].tolist() == [3.0, 2.0]
    assert curves_png(log).startswith(b"\x89PNG")


def test_curves_of_an_empty_log(tmp_path):
    assert curves_png(read_log(write_log(tmp_path / "run"))).startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [1, 2, 30, 100])
def test_confusion_of_any_size(classes):
    png = confusion_png(np.eye(classes, dtype=int), [f"a rather long class name $ number {c}" for c in range(classes)])
    width, height = Image.open(io.BytesIO(png)).size
    assert 200 < width < 2000 and 200 < height < 2000


def test_class_names_in_any_script_are_drawn_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert confusion_png(np.eye(3, dtype=int), ["\u8df3\u821e", "\u0442\u0430\u043d\u0435\u0446", "\U0001f483"])


def test_pictures_are_embedded_whole(tmp_path, videos, scores):
    page = report(tmp_path, videos, scores)
    embedded = re.search(r"data:image/png;base64,([^']*)", page.read_text())[1]
    assert base64.b64decode(embedded) == (page.parent / "confusion.png").read_bytes()


def test_several_classes(tmp_path, videos, scores):
    (tmp_path / "confusion.png").touch()  # of an earlier report
    scores.labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    metrics = summarize_multi_label(scores.probs, scores.labels, scores.scored, NAMES)
    page = write_report(tmp_path, videos, scores, NAMES, metrics)
    assert not (tmp_path / "confusion.png").exists()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "predictions.csv").read_text())))
    assert [row["label"] for row in rows] == [f"{NAMES[0]};{NAMES[1]}", NAMES[1], "", NAMES[2]]
    assert [row["correct"] for row in rows] == ["1", "0", "0", "0"]
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["map"] == metrics["map"] and saved["per_class"][2]["average_precision"] is None
    html = page.read_text()
    assert "mAP" in html and "lowest average precision first" in html and "Confusion" not in html
    assert "without a label" in html and NAMES[0] not in html  # which is markup
    first = confident_mistakes(videos, scores, NAMES, lambda i: thumbnail(videos[i]))[0]
    assert (first.path, first.labels) == (videos[1], [(NAMES[1], pytest.approx(0.05))])
    log = write_log(
        tmp_path / "run", TRAIN | {"step": 1, "epoch": 1, "hit1": 0.5}, VAL | {"step": 1, "epoch": 1, "map": 0.3}
    )
    assert curves_png(read_log(log)).startswith(b"\x89PNG")
