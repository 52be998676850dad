"""Files that unpack to many times their size are refused with little memory, before they are read."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from video_rs import checkpoint
from video_rs.cli import convert
from video_rs.cli.common import run
from video_rs.data.sources import dataset_index
from video_rs.errors import UserError

SECONDS, MEMORY = 2.0, 512 << 20
HUGE = 640 << 20  # bytes of content: more than MEMORY


@pytest.fixture
def little_memory():
    """Let this process take no more than `MEMORY` bytes in addition to what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def compressed(path: Path, method: int = zipfile.ZIP_DEFLATED, size: int = HUGE) -> None:
    """A checkpoint with one tensor of zeros."""
    torch.save({"w": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, data in entries.items():
            data = data.replace(b"K\x01tq", b"\x8a\x05" + struct.pack("<q", size // 4)[:5] + b"tq")  # elements
            if not name.endswith("data/0"):
                archive.writestr(name, data)
                continue
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(size >> 20):
                    file.write(bytes(1 << 20))


def mildly_compressed(path: Path) -> None:
    compressed(path, size=16 << 20)


def compressed_by_lzma(path: Path) -> None:
    compressed(path, zipfile.ZIP_LZMA, size=16 << 20)


def overlapping(path: Path) -> None:
    """A zip file with 1,000 entries of 1 MB that are the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
        archive.filelist *= 1000


def many_entries(path: Path) -> None:
    """A zip file with a directory of 300,000 entries."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.filelist *= 300_000


def a_directory_that_lies(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.filelist[0].file_size = archive.filelist[0].compress_size = 1 << 60


def expanded(path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def sparse(path: Path) -> None:
    torch.save({"w": torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (1 << 20, 1 << 20))}, path)


def without_storage(path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20, 1 << 20, device="meta")}, path)


def shared_values(path: Path) -> None:
    """Lists of lists that are the same objects: 10^20 values."""
    values = ["x"]
    for _ in range(20):
        values = [values] * 10
    torch.save({"config": [values, *range(300_000)]}, path)


def shared_text(path: Path) -> None:
    torch.save({"config": ["x" * 100_000] * 100_000}, path)


def deep(path: Path) -> None:
    path.write_bytes(b"\x80\x02}q\0X\1\0\0\0aq\1" + b"]" * 10_000 + b"a" * 9_999 + b"s.")


def deep_by_steps(path: Path) -> None:
    """Each list is also an entry of the top level."""
    steps = [[]]
    for _ in range(2000):
        steps.append([steps[-1]])
    torch.save({"config": steps}, path)


def circular(path: Path) -> None:
    values = {}
    values["config"] = values
    torch.save(values, path)


def a_long_number(path: Path) -> None:
    torch.save({"format": 10**5000, **dict.fromkeys(["config", "model_args", "data_config", "model"], {})}, path)


def a_pickle_of_huge_storages(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes().replace(b"M\xe8\x03", b"\x8a\x07" + struct.pack("<q", 1 << 48)[:7])
    path.write_bytes(data)


CHECKPOINTS = [
    *(compressed, mildly_compressed, compressed_by_lzma, overlapping, many_entries, a_directory_that_lies),
    *(
        expanded,
        sparse,
        without_storage,
        shared_values,
        shared_text,
        deep,
        deep_by_steps,
        circular,
        a_long_number,
        a_pickle_of_huge_storages,
    ),
]


def header(content: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if size is None else size) + content


def tensors(count: int) -> bytes:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(entry % number for number in range(count)) + b"}"


def entry(**changes) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}).encode()


SAFETENSORS = {
    "long": header(tensors(1_500_000)),
    "claims 2^40": header(b"{}", 1 << 40),
    "claims 2^31": header(b"{}", 1 << 31),
    "claims 99 MB": header(b"{" + b" " * 1000, 99_000_000),
    "claims all": header(b"{}", (1 << 64) - 1),
    "empty": header(b""),
    "deep": header(b'{"a":' * 100_000),
    "deep lists": header(b'{"a":' + b"[" * 1_000_000),
    "a long number": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'),
    "a huge shape": header(entry(shape=[1 << 40, 1 << 20])) + bytes(4),
    "an overflowing shape": header(entry(shape=[1 << 62, 4])) + bytes(4),
    "no elements of huge shape": header(entry(shape=[0, 1 << 62], data_offsets=[0, 0])),
    "huge offsets": header(entry(data_offsets=[0, 1 << 62])) + bytes(4),
    "backward offsets": header(entry(data_offsets=[4, 0])) + bytes(4),
    "an unknown type": header(entry(dtype="F" * 1000)) + bytes(4),
    "a list": header(b"[]"),
}


def refused(main, *argv: object) -> str:
    start = time.process_time()
    code = run(main, [*map(str, argv)])
    assert code == 2 and time.process_time() - start < SECONDS


@pytest.mark.parametrize("make", CHECKPOINTS)
def test_checkpoints_that_unpack_to_many_times_their_size(tmp_path, capsys, request, make):
    path = tmp_path / "a.pt"
    make(path)
    request.getfixturevalue("little_memory")
    refused(convert.main, "--weights", path, "--out", tmp_path / "b.pt")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 300 and str(path) in error
    assert "memory" not in error


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_with_absurd_headers(tmp_path, capsys, little_memory, name):
    for suffix in ("safetensors", "pt"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(SAFETENSORS[name])
        refused(convert.main, "--weights", path, "--out", tmp_path / "b.pt")
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and len(error) < 300 and str(path) in error


def test_deep_values_in_the_metadata_of_safetensors(tmp_path):
    import safetensors.torch

    metadata = {"format": "2", "model_args": "{}", "data_config": "[" * 400 + "]" * 400}
    safetensors.torch.save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match="a.safetensors is not used: it contains values that are nested too deeply"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_snapshots_that_are_one_tensor_are_loaded(tmp_path):
    """A state dict that was kept after each epoch without a copy. The file holds its tensors once."""
    state = torch.nn.Linear(1000, 1000).state_dict()
    torch.save({"model": state, "history": [dict(state) for _ in range(50)]}, tmp_path / "a.pt")
    assert len(checkpoint.load(tmp_path / "a.pt")["history"]) == 50
    torch.save({str(i): state["weight"].detach() for i in range(5000)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="would unpack to"):
        checkpoint.load(tmp_path / "a.pt")


def test_weights_that_compress_well_are_loaded(tmp_path):
    """Zeros, in a file that was compressed by another program, and several names for one tensor."""
    path, weight = tmp_path / "a.pt", torch.zeros(1000)
    torch.save({"model": {"a": weight, "b": weight}, "ema": {"a": weight.clone()}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert torch.equal(checkpoint.load(path)["model"]["b"], weight)


@pytest.mark.parametrize("kind", ["compressed", "overlapping", "claims", "many frames"])
def test_index_files_that_unpack_to_many_times_their_size(tmp_path, request, kind):
    path, rows = tmp_path / "a.npz", np.zeros(1, dataset_index.ROW)
    arrays = {"rows": rows, "gaps": np.zeros(1, np.uint16), "ends": np.ones(1, np.int64), "words": np.array([""])}
    if kind == "many frames":
        file = tmp_path / "a.mp4"
        file.write_bytes(bytes(1000))
        size, changed = dataset_index.file_version(str(file))
        rows[0] = (size, changed, 2**32 - 1, 1, 0, 1, 25, 0, 0)
    elif kind == "compressed":
        arrays["gaps"] = np.zeros(32 << 20, np.uint16)
    np.savez_compressed(path, **arrays)
    if kind == "overlapping":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x.npy", bytes(1 << 20))
            archive.filelist += archive.filelist[-1:] * 1000
    elif kind == "claims":
        text = io.BytesIO()
        np.lib.format.write_array_header_1_0(text, {"descr": "<u2", "fortran_order": False, "shape": (1 << 40,)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.npy", text.getvalue())
    request.getfixturevalue("little_memory")
    start = time.process_time()
    if kind == "many frames":
        assert dataset_index.load(path).stream_index(0, str(tmp_path / "a.mp4")) is None
    else:
        with pytest.raises(UserError, match="a.npz is damaged or from another version"):
            dataset_index.load(path)
    assert time.process_time() - start < SECONDS


def test_nothing_but_plain_values_is_unpickled(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps({"w": Path("x")}))
    with pytest.raises(UserError, match="holds Python objects other than tensors"):
        checkpoint.load(path)
