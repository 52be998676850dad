"""One or several processes: how they find, check and wait for each other.

Every process of a run is a :class:`World`; with one process each of its methods does nothing, so that callers never ask
how many there are. Whatever is waited for has a time-out, and a message that names this rank and what it waited for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import video_rs
from video_rs.distributed import launcher, rendezvous
from video_rs.distributed.device import all_reduce, claim_device
from video_rs.errors import PeerFailed, PeersLost, UserError, VideoRSError, first_line
from video_rs.hub import redact_url

_LOST = re.compile(
    "timed out|time-?out|closed by peer|reset by peer|connection refused|broken pipe|nccl|gloo", re.IGNORECASE
)


@dataclass
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: of this process, from 0.
        local_rank: of this process on its machine.
        size: how many there are.
        local_size: how many there are on this machine.
        timeout: seconds that one waits for the others.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    timeout: float = 600.0
    _store: Any = field(default=None, repr=False)
    _host: Any = field(default=None, repr=False)  # a process group for values of the host
    _waits: int = field(default=0, repr=False)  # so far, of the patient kind
    _heard: float = field(default=-math.inf, repr=False)  # when the others last heard of this process

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def agree(self, flags: Sequence[int], what: str) -> list[int]:
        """The largest of each flag over all processes."""
        if self.size == 1:
            return [int(flag) for flag in flags]
        tensor = torch.tensor([int(flag) for flag in flags])
        self._arrive(what)
        with self.guard(what):
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._host)
        return tensor.tolist()

    def gather(self, value: Any, what: str, on_main: bool = False) -> list[Any]:
        """Return the values of all ranks, by rank: whatever can be pickled. ``on_main``: on others than rank 0, []."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.is_main or not on_main else []
        self._arrive(what)
        with self.guard(what):
            if on_main:
                dist.gather_object(value, values or None, group=self._host)
            else:
                dist.all_gather_object(values, value, group=self._host)
        return values

    def sum_(self, tensor: Tensor, what: str) -> None:
        """Makes a tensor the sum of all processes' tensors."""
        if self.size > 1:
            with self.guard(what):
                all_reduce([tensor])

    @contextlib.contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Runs what waits for other processes: that one of them is lost is a PeersLost, which names this rank."""
        try:
            yield
        except RuntimeError as error:  # which all of torch.distributed's are
            is_lost = isinstance(error, dist.DistError) or _LOST.search(str(error))
            if self.size == 1 or not is_lost or type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = f"({first_line(error)}){self._missing(what)}"
            raise PeersLost(
                f"rank {self.rank} of {self.size} lost the others in {what} {reason}: see what they said last, and "
                "start again to go on"
            ) from error

    def heartbeat(self) -> None:
        """Tells the others that this process is at work, in what they wait for with patience; at most once a second."""
        if self._store and time.monotonic() > self._heard + 1:
            self._heard = time.monotonic()
            with contextlib.suppress(RuntimeError):  # those who wait will notice
                self._store.add(f"alive/{self.rank}", 1)

    @contextlib.contextmanager
    def together(self, what: str, heartbeats: bool = False) -> Iterator[None]:
        """Runs what may fail in some processes, and fails in all of them if it does.

        Where several fail, the error of the lowest rank counts; all others raise ``PeerFailed``. One inside of another
        tells each failure once. ``PeersLost`` is raised at once: nobody is there to be told.

        Args:
            what: for messages.
            heartbeats: a rank may take any time, as long as it sends a :meth:`heartbeat` within each timeout.
        """
        failure: VideoRSError | None = None
        try:
            yield
        except VideoRSError as error:
            if self.size == 1 or isinstance(error, (PeerFailed, PeersLost)) or error.is_shared:
                raise
            failure = error
        if heartbeats and self._store:
            self._wait_for_all(what)
        outcome = failure and (str(failure), failure.exit_code)
        for rank, failed in enumerate(self.gather(outcome, what)):
            if failed and rank == self.rank:
                failure.is_shared = True
                raise failure
            if failed:
                raise PeerFailed(rank, *failed)

    def close(self) -> None:
        """Leaves the others."""
        if self.size > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _wait_for_all(self, what: str) -> None:
        """Returns once all have come here; one that was silent for the time-out is lost."""
        self._waits += 1
        self._arrive(what)
        with self.guard(what):
            self._store.add(f"waits/{self._waits}", 1)
            signs, since = None, time.monotonic()
            while self._store.add(f"waits/{self._waits}", 0) < self.size:
                heard = [self._store.add(f"alive/{rank}", 0) for rank in range(self.size)]
                if heard != signs:
                    signs, since = heard, time.monotonic()
                if time.monotonic() > since + self.timeout:
                    raise RuntimeError(f"timed out: no sign of life for {self.timeout:g} s")
                time.sleep(0.1)

    def _arrive(self, what: str) -> None:
        """Tells the others where this process is, for the message of one that waits in vain."""
        try:
            if self._store:
                self._store.set(f"at/{self.rank}", what)
        except RuntimeError:  # it was rank 0's, which the others will miss soon, or torchrun's
            if launcher.is_torchrun():
                raise PeersLost(f"rank {self.rank}: torchrun has ended, in {what}; start again to go on") from None

    def _missing(self, what: str) -> str:
        """Which ranks are not where this one is, as far as can still be found out."""
        places: dict[int, str] = {}
        if not self._store:
            return ""
        with contextlib.suppress(RuntimeError):
            self._store.set_timeout(timedelta(seconds=2))
            for rank in range(self.size):
                places[rank] = self._store.get(f"at/{rank}").decode() if self._store.check([f"at/{rank}"]) else "start"
        late = [f"rank {rank} was last in {place}" for rank, place in places.items() if place != what]
        return f"; {', '.join(late)}" if late else ""


def start_world(device_type: str = "cpu", timeout: float = 600.0) -> World:
    """Joins the other processes, if torchrun or a step of SLURM started several.

    Args:
        device_type: ``cpu`` (gloo), ``cuda`` (NCCL for tensors there, gloo for the rest) or ``xla`` (XLA, and gloo).
        timeout: seconds to wait for the others, now and later.

    Raises:
        UserError: the launcher's variables are not whole, the port is in use, or there are fewer GPUs than processes.
        MachineError: some processes have not come in time; the message names them.
    """
    variables = launcher.variables()
    if launcher.processes() == 1:
        claim_device(device_type)
        return World(timeout=timeout)
    rank, size, local = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    world = World(rank, local, size, int(variables.get("LOCAL_WORLD_SIZE", 1)), timeout)
    claim_device(device_type, rank, size, local, world.local_size)
    with world.guard("the start"):
        world._store = rendezvous.meet(rank, size, variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), timeout)
        limit = timedelta(seconds=timeout)
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", world._store), rank=rank, world_size=size, timeout=limit
        )
        world._host = dist.new_group(backend="gloo", timeout=limit)
    return world


def check_same(world: World, values: Mapping[str, Any]) -> None:
    """Raises UserError in all processes where one has another value than rank 0: of a config key, of the data, of code.

    Args:
        values: by name; values that are mappings are compared key by key.
    """
    flat = {}
    for name, value in values.items():
        flat |= {f"{name} {key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    everybody = world.gather(flat, "the comparison of configs")
    with world.together("the comparison of configs"):
        for rank, theirs in enumerate(everybody) if world.is_main else ():
            if differing := {name for name in flat.keys() | theirs.keys() if flat.get(name) != theirs.get(name)}:
                name = min(differing)
                ours, other = (redact_url(v) if isinstance(v, str) else v for v in (flat.get(name), theirs.get(name)))
                raise UserError(
                    f"{name} is {ours!r} for rank 0 and {other!r} for rank {rank}: start all processes with the same "
                    "config, data and code"
                )


@functools.cache
def code_version() -> str:
    """Versions of this package and of torch, and a digest of this package's source."""
    digest = hashlib.sha256()
    folder = Path(video_rs.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{video_rs.__version__}, torch {torch.__version__}, source {digest.hexdigest()[:12]}"
