"""Index the videos of a dataset. Training then does not read all packets of a file for each clip."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec

from video_rs.data.sources.dataset_index import Version, VideoIndex, file_version, pack
from video_rs.data.sources.records import Records
from video_rs.data.tools.pool import Beat, Lost, Progress, no_progress, watched_calls
from video_rs.data.video.stream_index import StreamIndex, read_stream_index
from video_rs.errors import MediaError, StorageError


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


def index_videos(
    records: Records, workers: int = 1, timeout: float = 0.0, progress: Progress = no_progress
) -> IndexedVideos:
    """Read the packets of all videos of a split.

    Args:
        records: records of video files.
        workers: number of processes.
        timeout: maximum seconds for one file, after which it counts as one that cannot be opened; 0 for no limit.
        progress: called with the results and their number; returns an iterator that displays the progress.

    Raises:
        MachineError: a process was killed, or the storage fails.
    """
    decoders, lengths, problems = Counter(), [], {}
    missing = "" if find_spec("decord") else "decord is not installed"
    files = enumerate(map(records.path, range(len(records))))
    calls = watched_calls(_index, files, min(workers, len(records)), timeout, lambda item: item[1])

    def indexed() -> Iterator[tuple[int, Version, StreamIndex]]:
        for (number, path), result in progress(calls, len(records)):
            if isinstance(result, Lost):
                problems[number] = f"{path}: {result.reason}"
                continue
            if isinstance(result, MediaError | StorageError):
                problems[number] = f"{path}: {records.fault(result, number)}"
                continue
            version, index = result
            reason = index.decord_problem or missing
            decoders[f"PyAV ({reason})" if reason else "decord"] += 1
            lengths.append(index.num_frames)
            yield number, version, index

    with closing(calls):
        index = pack(indexed(), len(records))
    return IndexedVideos(index, decoders, lengths, [problems[number] for number in sorted(problems)])


def _index(item: tuple[int, str], beat: Beat) -> tuple[Version, StreamIndex]:
    return file_version(item[1]), read_stream_index(item[1])
