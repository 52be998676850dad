"""Available memory of the machine, its control groups and its limits; and allocations beyond it."""

import math
import resource
import threading

import pytest
import torch
from torch import nn

from tests import small_machine
from video_rs.data_config import DataConfig
from video_rs.distributed import memory
from video_rs.distributed.memory import available_bytes, largest_that_fits, limited
from video_rs.evaluation.multiview import Forward

CPU, GIB, MIB = torch.device("cpu"), 2**30, 2**20
UNLIMITED = 9223372036854771712  # of version 1


def v1(point, root="/"):
    return f"35 31 0:32 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,memory"


def v2(point, root="/"):
    return f"36 31 0:33 {root} {point} rw,relatime - cgroup2 cgroup2 rw,nsdelegate"


def test_the_memory_of_this_machine():
    """The real files of this system."""
    assert 0 < available_bytes(CPU) < math.inf
    assert available_bytes(torch.device("meta")) == math.inf


def test_systems_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path / "none")
    assert available_bytes(CPU) == math.inf
    with limited(CPU):
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_the_memory_of_the_machine(monkeypatch, tmp_path):
    small_machine.has(monkeypatch, tmp_path, 23)
    assert available_bytes(CPU) == 23 * GIB


@pytest.mark.parametrize("limited_group", ["", "pods", "pods/mine", "pods/mine/deep"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_limits_of_control_groups_and_of_groups_above_them(monkeypatch, tmp_path, version, limited_group):
    top, names = tmp_path / "groups", ("", "pods", "pods/mine", "pods/mine/deep")
    limit, used = (
        ("memory_max", "memory_current") if version == "v2" else ("memory_limit_in_bytes", "memory_usage_in_bytes")
    )
    for name in names:
        unlimited = "max" if version == "v2" else UNLIMITED
        small_machine.group(top / name, **{limit: 4 * GIB if name == limited_group else unlimited, used: GIB})
    own, mount = ("0::/pods/mine/deep", v2(top)) if version == "v2" else ("7:cpu,memory:/pods/mine/deep\n0::/", v1(top))
    small_machine.has(
        monkeypatch, tmp_path, 23, f"3:cpuset:/other\n{own}\n", (f"1 1 0:1 / {tmp_path} rw - tmpfs  rw", mount)
    )
    assert available_bytes(CPU) == 3 * GIB


@pytest.mark.parametrize(
    ("own", "mount"),
    [
        ("0::/\n", lambda top: v2(top)),  # a separate namespace
        ("4:memory:/docker/abc\n", lambda top: v1(top, "/docker/abc")),  # docker with version 1
        ("0::/docker/abc\n", lambda top: v2(top, "/docker/abc")),
        ("0::/../../other\n", lambda top: v2(top)),
        ("0::/not/visible\n", lambda top: v2(top, "/../..")),
    ],
)
def test_containers_see_their_own_group_as_the_top(monkeypatch, tmp_path, own, mount):
    names = ["memory_limit_in_bytes", "memory_usage_in_bytes"] if "memory" in own else ["memory_max", "memory_current"]
    small_machine.group(tmp_path / "groups", **dict(zip(names, (4 * GIB, GIB))))
    small_machine.has(monkeypatch, tmp_path, 23, own, (mount(tmp_path / "groups"),))
    assert available_bytes(CPU) == 3 * GIB


def test_a_limit_above_the_container_and_the_soft_limit(monkeypatch, tmp_path):
    """Version 1 reports the smallest limit of all groups above. Version 2 stops a process above memory.high."""
    small_machine.group(tmp_path / "v1", stat={"hierarchical_memory_limit": 2 * GIB}, memory_usage_in_bytes=GIB)
    small_machine.has(monkeypatch, tmp_path, 23, "4:memory:/\n", (v1(tmp_path / "v1"),))
    assert available_bytes(CPU) == GIB
    small_machine.group(tmp_path / "v2", memory_max=8 * GIB, memory_high=3 * GIB, memory_current=GIB)
    small_machine.has(monkeypatch, tmp_path, 23, "0::/\n", (v2(tmp_path / "v2"),))
    assert available_bytes(CPU) == 2 * GIB


@pytest.mark.parametrize("prefix", ["", "total_"])
def test_the_page_cache_is_available_and_shared_memory_is_not(monkeypatch, tmp_path, prefix):
    """Files in /dev/shm are part of the cache, but the kernel cannot drop them."""
    cache = {"cache": 3 * GIB, "shmem": GIB, "inactive_anon": GIB, "inactive_file": GIB, "active_file": GIB}
    stat = {f"{prefix}{name}": value for name, value in cache.items()}
    small_machine.group(tmp_path / "groups", memory_max=4 * GIB, memory_current=4 * GIB, stat=stat)
    small_machine.has(monkeypatch, tmp_path, 23, "0::/\n", (v2(tmp_path / "groups"),))
    assert available_bytes(CPU) == 2 * GIB


@pytest.mark.parametrize(("allowed", "expected"), [("max", 3), (2**29, 2.5), (0, 2), (None, 2)])
def test_free_swap_is_available_where_the_group_may_use_it(monkeypatch, tmp_path, allowed, expected):
    files = {"memory_max": 3 * GIB, "memory_current": GIB} | ({} if allowed is None else {"memory_swap.max": allowed})
    small_machine.group(tmp_path / "groups", **files)
    small_machine.has(monkeypatch, tmp_path, 23, "0::/\n", (v2(tmp_path / "groups"),), swap=1)
    assert available_bytes(CPU) == expected * GIB
    small_machine.has(monkeypatch, tmp_path, 23, swap=1)
    assert available_bytes(CPU) == 24 * GIB


@pytest.mark.parametrize(("kind", "used"), [(resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")])
def test_limits_of_the_process(kind, used):
    before = resource.getrlimit(kind)
    status = memory._values(memory.PROC / "self/status")
    try:
        resource.setrlimit(kind, (status[used] + 512 * MIB, before[1]))
        assert 0 < available_bytes(CPU) <= 512 * MIB
    finally:
        resource.setrlimit(kind, before)


def test_allocations_beyond_the_available_memory_raise_an_error(monkeypatch, tmp_path):
    """The sizes are larger than a block that an earlier test may have left on the heap."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    small_machine.has(monkeypatch, tmp_path, 2)
    with limited(CPU):
        torch.ones(100 * MIB, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(3000 * MIB, dtype=torch.uint8)
    with pytest.raises(RuntimeError), limited(CPU, processes=4):
        torch.empty(1500 * MIB, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.empty(3000 * MIB, dtype=torch.uint8)


def test_several_threads_leave_no_limit_behind(monkeypatch, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    small_machine.has(monkeypatch, tmp_path, 1)
    inside, leave = threading.Barrier(3), threading.Barrier(3)

    def work():
        with limited(CPU):
            inside.wait(10)
            leave.wait(10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] < 2**62
    leave.wait(10)
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_threads_of_torch_start_when_memory_is_short(monkeypatch, tmp_path):
    """OpenMP starts them in the first operation that uses them, and ends the process if it cannot."""
    small_machine.has(monkeypatch, tmp_path, 0.03)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    end, threads = threading.Event(), []
    try:
        with limited(CPU):
            for _ in range(31):
                thread = threading.Thread(target=end.wait)
                thread.start()  # 8 MiB of address space, mostly unused
                threads.append(thread)
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_the_largest_size_that_fits(monkeypatch, tmp_path):
    small_machine.has(monkeypatch, tmp_path, 2)

    def attempt(size):
        with limited(CPU):
            torch.empty(size * MIB, dtype=torch.uint8)

    assert largest_that_fits([50, 100, 3000, 5000], attempt) == 100


class Wide(nn.Module):
    """Needs 64 MiB for each view."""

    data_config, num_classes = DataConfig(num_frames=1), 2

    def __init__(self):
        super().__init__()
        self.scale, self.sizes = nn.Parameter(torch.ones(2)), []

    def forward(self, clips):
        wide = torch.empty(len(clips), 16 * MIB)
        self.sizes.append(len(wide))
        return clips.mean((1, 2, 3, 4))[:, None] * self.scale


def test_views_that_do_not_fit_are_halved_before_the_kernel_kills(monkeypatch, tmp_path, capfd):
    small_machine.has(monkeypatch, tmp_path, 0.3)
    model = Wide().eval()
    forward = Forward(model, CPU, "float32", 8)
    assert forward(torch.zeros(9, 1, 8, 8, 3, dtype=torch.uint8)).shape == (9, 2)
    assert model.sizes == [4, 4, 1]
    assert capfd.readouterr().err == "not enough memory for 8 views in one forward pass: continuing with 4\n"
