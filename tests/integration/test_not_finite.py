"""Training that diverges, by the real command."""

import re

import torch

from video_rs import checkpoint


def test_a_run_that_diverges_names_a_checkpoint_to_start_from(tiny_config, tmp_path, run_tool):
    """The learning rate is absurd after an epoch of warm-up. What is written is finite, and the named file trains."""
    path = tiny_config(optim__lr=1000, optim__warmup_epochs=5, train__epochs=10, train__ema_decay=0, train__val_every=0)
    done = run_tool("train_net.py", "--cfg", path)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, "not finite; lower optim.lr" in line) == (2, True), (line, done.stdout[-900:])
    written = [checkpoint.load(file)["model"] for file in (tmp_path / "run").rglob("*.pt")]
    assert len(written) >= 2 and all(torch.isfinite(value).all() for model in written for value in model.values())
    good = re.search(r"another out= and train.init_from=(\S+)$", line)[1]
    path = tiny_config(train__max_steps=1, train__init_from=good, out=str(tmp_path / "again"))
    assert run_tool("train_net.py", "--cfg", path).returncode == 0
