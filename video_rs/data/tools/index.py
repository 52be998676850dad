"""Index the videos of a dataset. Training then does not read all packets of a file for each clip."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from video_rs.data.sources.dataset_index import Version, VideoIndex, index_video, pack
from video_rs.data.sources.records import Records
from video_rs.data.tools.pool import Progress, map_in_processes, no_progress
from video_rs.data.video.stream_index import StreamIndex


@dataclass(frozen=True)
class IndexedVideos:
    """The result of :func:`index_videos`.

    Attributes:
        index: index of the files.
        decoders: number of files for each decoder that ``data.decoder=decord`` selects, with the reason for PyAV.
        lengths: numbers of frames of the videos that can be opened; 0 if unknown without decoding.
        problems: one line for each file that cannot be opened.
    """

    index: VideoIndex
    decoders: Counter[str]
    lengths: list[int]
    problems: list[str]


def index_videos(records: Records, workers: int = 1, progress: Progress = no_progress) -> IndexedVideos:
    """Read the packets of all videos of a split.

    Args:
        records: records of video files.
        workers: number of processes.
        progress: called with the results and their number; returns an iterator that displays the progress.
    """
    decoders, lengths, problems = Counter(), [], []
    missing = "" if find_spec("decord") else "decord is not installed"
    paths = [records.path(number) for number in range(len(records))]

    def indexes() -> Iterator[tuple[Version, StreamIndex | None]]:
        for version, index, problem in progress(map_in_processes(index_video, paths, workers), len(paths)):
            if index is None:
                problems.append(problem)
            else:
                reason = index.decord_problem or missing
                decoders[f"PyAV ({reason})" if reason else "decord"] += 1
                lengths.append(index.num_frames)
            yield version, index

    return IndexedVideos(pack(indexes(), len(paths)), decoders, lengths, problems)
