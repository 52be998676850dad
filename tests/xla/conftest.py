"""XLA's CPU device; needs torch_xla: ``make test-xla``."""

import os

import pytest

from tests.integration.conftest import run_tool, tiny_config, tiny_videos  # noqa: F401  fixtures

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run


@pytest.fixture(scope="session", autouse=True)
def xla_on_the_cpu():
    """XLA's CPU device in this process and its subprocesses."""
    from video_rs.distributed.device import claim_device

    os.environ["PJRT_DEVICE"] = "CPU"
    os.environ.setdefault("XLA_FLAGS", QUICK)
    claim_device("xla")
