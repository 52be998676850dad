"""The check of datasets, on intact and damaged files."""

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data import videos, writers
from video_rs.data.clips import TemporalSampling
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import Facts, check_file
from video_rs.data.tools.check_problems import Entries, find_problems
from video_rs.data.tools.content import packet_digest
from video_rs.data.video.decode import probe
from video_rs.errors import StorageError


def remux(source, target):
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return Path(target)


def found_in(sampling=None, **splits):
    """Return all problems of ``{split: [(path, label), ..]}``, as (file name, kind, detail)."""
    names = sorted({label for files in splits.values() for _, label in files})
    records = {
        split: Records([path for path, _ in files], [names.index(label) for _, label in files], names)
        for split, files in splits.items()
    }
    entries = Entries(records)
    facts = [check_file(entries.path(entry)) for entry in entries.first]
    problems = find_problems(entries, facts, sampling or TemporalSampling(4, 1))
    return [(os.path.basename(entries.path(p.entry)), p.kind, p.detail) for p in problems]


def test_the_facts_of_a_video_and_of_an_image(make_video, tmp_path):
    from PIL import Image

    facts = check_file(str(make_video(tmp_path / "a.mp4", 30, 64, 96, fps=15, rotation=90)))
    assert (facts.frames, facts.fps, facts.height, facts.width) == (30, 15, 96, 64) and facts.problem == ""
    assert facts.rotation % 360 == probe(tmp_path / "a.mp4").rotation % 360 != 0
    assert facts.codec == "h264" and facts.bytes == os.path.getsize(tmp_path / "a.mp4") and len(facts.sha1) == 20
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    facts = check_file(str(tmp_path / "a.png"))
    assert (facts.frames, facts.height, facts.width, facts.codec, facts.decoder) == (1, 20, 30, "png", "pil")


@pytest.mark.parametrize(
    "name", ["h264.mp4", "variable_rate.mkv", "late_start.mkv", "dropped_frames.avi", "new_size.mkv", "gray.mp4"]
)
def test_unusual_files_that_can_be_read_are_not_broken(name, tmp_path):
    path = videos.write(name, tmp_path / name)
    facts = check_file(str(path))
    assert facts.problem == "" and facts.frames == probe(path).num_frames


def test_broken_files(make_video, tmp_path):
    from PIL import Image

    def problem(name, data=None):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        return check_file(str(tmp_path / name)).problem

    whole = make_video(tmp_path / "whole.mkv", 60).read_bytes()
    assert problem("whole.mkv") == ""
    assert problem("cut.mkv", whole[: len(whole) // 2]) == "it ends at 0.44 s, but its header indicates 2.40 s"
    mp4 = make_video(tmp_path / "whole.mp4", 60, options={"movflags": "faststart"}).read_bytes()
    assert "without its index (moov)" in problem("cut.mp4", mp4[: len(mp4) // 2])
    at = mp4.index(b"mdat") + (len(mp4) - mp4.index(b"mdat")) // 2
    damaged = mp4[:at] + bytes(byte ^ 0x55 for byte in mp4[at : at + 300]) + mp4[at + 300 :]
    assert problem("damaged.mp4", damaged)
    assert problem("no_video.mp4", b"no video")
    with pytest.raises(StorageError, match="no_such.mp4: no such file$"):
        problem("no_such.mp4")
    assert problem("empty.mp4", b"") == "the file is empty"
    videos.write(videos.AUDIO_ONLY, tmp_path / videos.AUDIO_ONLY)
    assert problem(videos.AUDIO_ONLY) == "no video stream"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    assert problem("a.jpg") == "" and "truncated" in problem("b.jpg", (tmp_path / "a.jpg").read_bytes()[:1500])
    os.mkfifo(tmp_path / "pipe.mp4")
    assert problem("pipe.mp4") == "not a file"


def test_damage_that_leaves_all_frames_is_told(make_video, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), np.uint8)
    data = bytearray(make_video(tmp_path / "a.mp4", frames=pixels, options={"bf": "0"}).read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 400):
        data[at] ^= 0x55
    (tmp_path / "b.mp4").write_bytes(data)
    facts = check_file(str(tmp_path / "b.mp4"))
    assert facts.frames == 20 and "reports damage in" in facts.problem
    assert check_file(str(tmp_path / "a.mp4")).problem == ""


def test_duplicates_leaks_and_conflicts(make_video, tmp_path):
    one = make_video(tmp_path / "one.mp4", 20)
    two = make_video(tmp_path / "two.mp4", 20, first_number=100)
    same_bytes = shutil.copy(one, tmp_path / "copy.mp4")
    same_frames = remux(one, tmp_path / "other.mkv")
    assert check_file(str(one)).pixels == check_file(str(same_frames)).pixels
    assert found_in(train=[(one, "a"), (two, "b")]) == []
    assert found_in(train=[(one, "a"), (same_bytes, "a"), (same_frames, "a"), (two, "b")]) == [
        ("copy.mp4", "duplicate", f"same bytes as {one}"),
        ("other.mkv", "duplicate", f"same frames as {one}"),
    ]
    assert found_in(train=[(one, "a"), (two, "b")], val=[(same_frames, "a"), (two, "b")]) == [
        ("other.mkv", "leak", f"same frames as {one} in train"),
        ("two.mp4", "leak", f"listed again, as {two} in train"),
    ]
    assert found_in(train=[(one, "a")], val=[(two, "a"), (same_bytes, "a"), (same_frames, "a")]) == [
        ("copy.mp4", "leak", f"same bytes as {one} in train"),
        ("other.mkv", "duplicate", f"same frames as {same_bytes}"),
        ("other.mkv", "leak", f"same frames as {one} in train"),
    ]
    assert found_in(train=[(one, "a"), (two, "b"), (same_bytes, "b")]) == [
        ("copy.mp4", "duplicate", f"same bytes as {one}"),
        ("copy.mp4", "label conflict", f"'b', but 'a' for {one} with the same content"),
    ]


def test_files_without_content_are_not_duplicates(tmp_path):
    """Empty and missing files, and files that crash the process."""
    files = [tmp_path / name for name in ("empty.mp4", "also_empty.mp4")]
    for file in files:
        file.touch()
    problems = found_in(train=[(files[0], "a")], val=[(files[1], "b")])
    assert problems == [(file.name, "broken", "the file is empty") for file in files]
    assert Facts(problem="no such file").content == {}


def test_leaks_are_found_by_packets_if_frames_differ(assets, tmp_path):
    """Matroska has no edit list: it shows five more frames."""
    one = assets / "videos/discard_first_keyframe.mp4"
    two = remux(one, tmp_path / "all.mkv")
    facts = [check_file(str(path)) for path in (one, two)]
    assert [each.frames for each in facts] == [25, 30] and facts[0].pixels != facts[1].pixels
    assert found_in(TemporalSampling(1, 1), train=[(one, "a")], val=[(two, "a")]) == [
        ("all.mkv", "leak", f"same video packets as {one} in train")
    ]


@pytest.mark.parametrize(
    ("codec", "source", "others"),
    [
        ("libx264", "mp4", "mkv ts flv mov"),
        ("libx265", "mp4", "mkv ts"),
        ("mpeg4", "avi", "mp4 mkv ts"),
        ("mpeg2video", "mpg", "mp4 mkv avi ts"),
        ("libvpx-vp9", "webm", "avi"),
    ],
)
def test_packet_digests_are_equal_in_every_container(codec, source, others, make_video, tmp_path):
    one = make_video(tmp_path / f"one.{source}", 20, codec=codec)
    digest = packet_digest(str(one))
    assert digest and digest != packet_digest(str(make_video(tmp_path / f"two.{source}", 21, codec=codec)))
    assert {packet_digest(str(remux(one, tmp_path / f"other.{each}"))) for each in others.split()} == {digest}


def test_a_source_video_in_two_splits_where_the_names_tell(make_video, tmp_path):
    ucf = [make_video(tmp_path / f"v_Diving_g0{g}_c0{c}.avi", 8, first_number=10 * n, codec="mpeg4")
           for n, (g, c) in enumerate([(1, 1), (1, 2), (2, 1)])]  # fmt: skip
    problems = found_in(train=[(ucf[0], "a")], val=[(ucf[1], "a"), (ucf[2], "a")])
    assert problems == [("v_Diving_g01_c02.avi", "leak", f"same source video as {ucf[0]} in train")]
    plain = [make_video(tmp_path / split / "a/0.mp4", 8, first_number=9 * n) for n, split in enumerate("xy")]
    assert found_in(train=[(plain[0], "a")], val=[(plain[1], "a")]) == []  # the file names hold no source


def test_short_files(make_video, tmp_path):
    files = [(make_video(tmp_path / f"{n}.mp4", n, first_number=100 * n), "a") for n in (21, 22)]
    assert found_in(TemporalSampling(8, 3), train=files) == [("21.mp4", "short", "21 frames, a clip spans 22")]
    # 8 frames at 12.5 per second span 15 frames at 25 per second
    files = [(make_video(tmp_path / f"{n}.mp4", n, first_number=100 * n), "a") for n in (14, 15)]
    assert found_in(TemporalSampling(8, 1, fps=12.5), train=files) == [
        ("14.mp4", "short", "14 frames, a clip spans 15")
    ]
    assert found_in(TemporalSampling(15, 3, "segments"), train=files) == [
        ("14.mp4", "short", "14 frames, a clip spans 15")
    ]


def test_odd_files(make_video, tmp_path):
    files = [make_video(tmp_path / f"{n}.mp4", 8, first_number=20 * n) for n in range(5)]
    files.append(make_video(tmp_path / "fast.mp4", 8, fps=60))
    files.append(make_video(tmp_path / "large.mp4", 8, 64 * 4, 96 * 4))
    files.append(make_video(tmp_path / "turned.mp4", 8, 96, 64, rotation=90, first_number=900))
    files.append(make_video(tmp_path / "wide.mp4", 8, 64, 208))
    files.append(make_video(tmp_path / "slow.mp4", 8, fps=10, first_number=700))
    files.append(make_video(tmp_path / "small.mp4", 8, 20, 30))
    assert found_in(train=[(file, "a") for file in files]) == [
        ("fast.mp4", "odd", "60 frames per second, usual 25"),
        ("large.mp4", "odd", "short side 256 pixels, usual 64"),
        ("turned.mp4", "odd", f"rotated by {probe(tmp_path / 'turned.mp4').rotation} degrees, usual 0"),
        ("wide.mp4", "odd", "width / height 3.25, usual 1.50"),
        ("slow.mp4", "odd", "10 frames per second, usual 25"),
        ("small.mp4", "odd", "short side 20 pixels, usual 64"),
    ]


def test_frames_out_of_timestamp_order_are_reported(tmp_path):
    def exchange(i, packet):  # two B-frames, which follow each other in the file and on the screen
        step = round(0.04 / packet.time_base)
        packet.pts, packet.dts = packet.pts + {2: 1, 3: -1}.get(i, 0) * step, packet.dts - step

    writers.remux(tmp_path / "a.mp4", exchange, "libx264", "bframes=2:b-adapt=0:b-pyramid=none")
    facts = check_file(str(tmp_path / "a.mp4"))
    assert (facts.frames, facts.problem) == (40, "its frames are not in the order of their timestamps")


def test_damage_is_reported_for_decoders_not_named_like_their_codec(tmp_path):
    path = tmp_path / "a.avi"
    writers.encode(path, "msmpeg4")
    data = bytearray(path.read_bytes())
    data[10_000:10_040] = bytes(40)
    path.write_bytes(data)
    assert check_file(str(path)).problem.startswith("FFmpeg reports damage (")


def test_a_first_frame_with_another_size_than_the_header_is_damage(tmp_path):
    source, file, problems = videos.shared("av1.mkv"), tmp_path / "a.mkv", set()
    with av.open(str(source)) as container:
        header = bytes(next(container.demux(video=0)))[:12]  # the first sequence header
    data = source.read_bytes()
    for bit in range(8 * data.index(header) + 16, 8 * (data.index(header) + len(header))):  # some change the size
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        problems.add(check_file(str(file)).problem)
    assert "its first frame does not have the size in its header" in problems
