"""Index the videos of a dataset: read the packets of each once, so that training need not read them for each clip."""

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
        index: of the files.
        decoders: number of files by the decoder that ``data.decoder=decord`` takes, with the reason if that is PyAV.
        lengths: numbers of frames of the videos that can be opened; 0 if only decoding can tell.
        problems: of the files that cannot be opened, one line each.
    """

    index: VideoIndex
    decoders: Counter[str]
    lengths: list[int]
    problems: list[str]


def index_videos(records: Records, workers: int = 1, progress: Progress = no_progress) -> IndexedVideos:
    """Read the packets of all videos of a split.

    Args:
        records: of video files.
        workers: number of processes.
        progress: wraps the results, given their number, to show progress.
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
