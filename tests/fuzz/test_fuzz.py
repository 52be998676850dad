"""Damaged files: no traceback, no death, no hang, no lack of memory, and no two answers to one question."""


import pytest

from tests.fuzz.calls import OTHERS
from tests.fuzz.run import Fuzzer

SEED = 16
FEW, MANY = 100, 2000
COMMAND_SECONDS = 240

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


def require_none(found):
    print(found.summary())
    assert not found.failures, "\n".join([found.summary(), *found.failures[:20]])


def test_damaged_videos(fuzzer):
    require_none(fuzzer.run("videos", SEED, range(FEW)))


@pytest.mark.exhaustive
def test_many_damaged_videos(fuzzer):
    require_none(fuzzer.run("videos", SEED + 1, range(MANY)))


@pytest.mark.parametrize("kind", OTHERS)
def test_other_damaged_files(fuzzer, kind):
    require_none(fuzzer.run(kind, SEED, range(FEW)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", OTHERS)
def test_many_other_damaged_files(fuzzer, kind):
    require_none(fuzzer.run(kind, SEED + 1, range(MANY)))
