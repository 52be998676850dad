import subprocess

import pytest

from tests.cli.processes import bind_root
from tests.faults import unavailable


@pytest.fixture
def as_a_user():
    """Options of a process for which permissions of files hold, also where the tests are root."""
    try:
        subprocess.run(["true"], preexec_fn=bind_root, check=True)
    except subprocess.SubprocessError:
        unavailable("this root cannot give up its capabilities")
    return {"preexec_fn": bind_root}
