"""``plugins=`` imports the files that register what a config names."""

import builtins
import sys

import pytest

from video_rs.cli import common
from video_rs.errors import UserError
from video_rs.experiment.config import load_config
from video_rs.experiment.plugins import load_plugins


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    yield
    sys.modules.pop("registers_a_loss", None)


def test_a_file_is_imported_once(tmp_path):
    file = tmp_path / "registers_a_loss.py"
    file.write_text("import builtins\nbuiltins.imports = getattr(builtins, 'imports', 0) + 1\n")

    for _ in range(2):
        config = load_config("motion_rs.yaml", [f"plugins=[{file}]", "train.loss=mine"])
    assert (config.plugins, config.train.loss, builtins.imports) == ((str(file),), "mine", 1)
    del builtins.imports


@pytest.mark.parametrize(
    ("text", "reason", "advice"),
    [
        (None, "FileNotFoundError", "name a Python file"),
        ("\n1 / 0", "ZeroDivisionError", "see .*registers_a_loss.py:2$"),
        ("import json\njson.loads('')", "JSONDecodeError", "see .*registers_a_loss.py:2$"),
        ("def", "SyntaxError", "see .*registers_a_loss.py:1$"),
    ],
)
def test_a_plugin_that_fails_is_named(tmp_path, text, reason, advice):
    file = tmp_path / "registers_a_loss.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=rf"^plugins={file}: cannot be imported \({reason}: .*\); {advice}"):
        load_plugins([str(file)])
    assert "registers_a_loss" not in sys.modules


def test_a_plugin_that_is_no_python_file_is_named(tmp_path):
    (tmp_path / "my_net.txt").touch()
    with pytest.raises(UserError, match=r"my_net.txt: not a Python file"):
        load_plugins([str(tmp_path / "my_net.txt")])


def test_a_module_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="^plugins=no_such_module: cannot be imported"):
        load_plugins(["no_such_module"])


def test_plugins_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice_named.py").write_text("")
    first, second = (str(tmp_path / folder / "twice_named.py") for folder in ("a", "b"))
    load_plugins([first, first])
    with pytest.raises(UserError, match="there is already a module twice_named"):
        load_plugins([second])
    with pytest.raises(UserError, match="there is already a module statistics"):
        import statistics  # noqa: F401

        load_plugins([str(tmp_path / "statistics.py")])


def test_commands_import_the_plugins_of_a_network(tmp_path):
    file = tmp_path / "lists_a_network.py"
    file.write_text("import builtins\nbuiltins.listed = True\n")
    parser = common.Parser("", prog="predict")
    parser.add_weights("")
    args = parser.parse_args(["--weights", "a.pt", "--plugins", str(file)])
    assert args.plugins == [str(file)] and builtins.listed
    del builtins.listed
