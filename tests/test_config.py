"""The config: inheritance, types, and one clear line for every mistake."""

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data_config import DataConfig
from video_rs.errors import ConfigError, UserError
from video_rs.experiment import config
from video_rs.experiment.build import model_args
from video_rs.models.architecture import Architecture


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_inherits_from_a_provided_config(write):
    loaded = config.load_config(write("mine.yaml", "_BASE_: finetune_rs50.yaml\ntrain: {epochs: 7}\n"))
    assert (loaded.optim.lr, loaded.train.epochs) == (0.02, 7.0)
    write("finetune_rs50.yaml", "optim: {lr: 0.5}\n")  # one beside the file comes first
    assert config.load_config(write("mine.yaml", "_BASE_: finetune_rs50.yaml\n")).optim.lr == 0.5


def test_inherits_and_overrides(write):
    write("base.yaml", "optim: {lr: 4e-5, momentum: 0.8}\ntrain: {epochs: 7}\n")
    path = write("mine.yaml", "_BASE_: base.yaml\noptim: {momentum: 0.7}\n")
    loaded = config.load_config(path, ["train.seed=5", "data.area=[0.2, 1]", "model.dropout=null", "data.root=123"])
    assert loaded.optim.lr == 4e-5  # PyYAML reads text here
    assert (loaded.optim.momentum, loaded.train.epochs, loaded.train.seed) == (0.7, 7.0, 5)
    assert loaded.data.area == (0.2, 1.0)
    assert loaded.data.root == "123"
    assert loaded.out == "runs/mine"


def test_null_where_there_are_choices(write):
    assert config.load_config(write("a.yaml", "{}"), ["model.temporal_padding=null"]).model.temporal_padding is None
    chosen = config.load_config(write("a.yaml", "{}"), ["model.temporal_padding=replicate"])
    assert chosen.model.temporal_padding == "replicate"


def test_fields_of_the_architecture_are_keys(write):
    path = write("a.yaml", "model: {arch: {shortcut: conv}}")
    overrides = [
        "model.arch.se_ratio=0",
        "model.arch.temporal_kernels=[1, [1, 3], 3, 3]",
        "model.arch.self_gating=true",
    ]
    loaded = config.load_config(path, overrides)
    assert model_args(loaded, 3)["arch"] == {
        "shortcut": "conv",
        "se_ratio": 0.0,
        "temporal_kernels": [1, [1, 3], 3, 3],
        "self_gating": True,
    }
    assert loaded.model.arch.temporal_kernels == (1, (1, 3), 3, 3)
    assert config.load_config(write("b.yaml", loaded.to_yaml())).model == loaded.model
    assert "arch" not in model_args(config.Config(), 3)
    names = {f.name for f in dataclasses.fields(Architecture)} - {"temporal_padding"}
    assert {f"model.arch.{name}" for name in names} <= config.flatten(config.Config()).keys()
    with pytest.raises(ConfigError, match="model.arch.shortcut is one of pool, conv"):
        config.load_config(path, ["model.arch.shortcut=max"])
    with pytest.raises(ConfigError, match="unknown key model.arch.se_rate; did you mean model.arch.se_ratio"):
        config.load_config(path, ["model.arch.se_rate=0"])


def test_yaml_round_trip(write):
    path = write("a.yaml", "data: {mean: [0.1, 0.2, 0.3]}\nmodel: {dropout: 0.3}\n")
    loaded = config.load_config(path)
    assert config.load_config(write("b.yaml", loaded.to_yaml())) == loaded
    assert config.from_dict(loaded.to_dict()) == loaded


def test_names_of_packaged_configs_work_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load_config("k400_rs50.yaml") == config.load_config("k400_rs50")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["unknown key optim.lrr", "did you mean optim.lr?"]),
        ("lr=1", ["unknown key lr", "did you mean optim.lr?"]),
        ("zzzzzz=1", ["unknown key zzzzzz", "--help"]),
        ("optim.lr=fast", ["optim.lr must be a number", "'fast'"]),
        ("optim.lr=-1", ["optim.lr must be between", "-1"]),
        ("optim.lr=.nan", ["optim.lr must be between", "nan"]),
        ("train.seed=1.5", ["train.seed must be a whole number", "1.5"]),
        ("train.batch_size=true", ["train.batch_size must be a whole number", "True"]),
        ("train.batch_size=0", ["at least 1"]),
        ("data.mean=[1, 2]", ["data.mean must be 3 floats"]),
        ("data.area=[0.5, 0.1]", ["data.area=[0.5, 0.1]: must be [lowest, highest]"]),
        ("data.filter=lanczos", ["data.filter is one of bilinear", "lanczos"]),
        ("data.sampling=sparse", ["data.sampling is one of dense, segments", "sparse"]),
        ("data.fps=-1", ["data.fps must be between 0 and 1000", "-1"]),
        ("data.repeats=0", ["data.repeats must be between 1 and 64"]),
        ("data.max_broken=2", ["data.max_broken must be between 0 and 1"]),
        ("data.test_size=300", ["data.test_size=300: must be at most data.short_side=256"]),
        ("train.micro_batch=3", ["train.micro_batch=3: must divide train.batch_size=1024", "to 2 or 4"]),
        ("test.crops=2", ["test.crops=2: must be 1"]),
        ("data.multi_label=2", ["data.multi_label must be true or false"]),
        ("model.temporal_padding=same", ["model.temporal_padding is one of zeros, replicate", "same"]),
        ("train.epochs=0", ["both 0"]),
        ("train.epochs=.inf", ["train.epochs must be at least 0", "inf"]),
        ("optim", ["not key=value"]),
        ("optim=3", ["unknown key optim"]),
    ],
)
def test_bad_override_is_one_line(write, override, words):
    with pytest.raises(ConfigError) as error:
        config.load_config(write("a.yaml", ""), [override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_error_names_the_file_it_is_in(write):
    base = write("base.yaml", "optim: {lrr: 1}\n")
    with pytest.raises(ConfigError, match=str(base)):
        config.load_config(write("mine.yaml", "_BASE_: base.yaml\n"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("optim: [\n", ":2: not YAML"),
        ("- 1\n", "found list"),
        ("optim: 3\n", "optim is a section"),
        ("_BASE_: gone.yaml\n", "gone.yaml cannot be read"),
        ("_BASE_: a.yaml\n", "circular _BASE_"),
    ],
)
def test_bad_file_is_one_line(write, text, word):
    with pytest.raises(ConfigError) as error:
        config.load_config(write("a.yaml", text))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def bomb(assets):
    return (assets / "cases" / "alias_bomb.yaml").read_text()


def fails(write, text, *overrides):
    """Return the error of a config, which takes less than a second and is one short line."""
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        config.load_config(write("a.yaml", text), overrides)
    message = str(error.value)
    assert time.monotonic() - start < 1 and len(message) < 500 and message.isprintable()
    assert not re.search(r"\w{101}", message)
    return message


@pytest.mark.parametrize("key", ["mean", "phases", "augment"])
def test_exponential_aliases_are_an_error(write, bomb, key):
    assert "more than 65536 characters" in fails(write, bomb.replace("mean", key))
    assert "more than 65536 characters" in fails(write, "", f"data.{key}={bomb.split('mean:')[1].strip()}")


NINES = "9" * 5000


@pytest.mark.parametrize(
    "text, words",
    [
        (f"optim: {{lr: {NINES}}}\n", "is not a valid value (Exceeds the limit"),
        (f"train: {{batch_size: {NINES[:4000]}}}\n", "train.batch_size must be a whole number; found 9999"),
        (f"train: {{batch_size: 0x{NINES}}}\n", "found a number of 20000 bits"),
        (f"optim: {{lr: {NINES[:4000]}}}\n", "optim.lr must be a number"),
        (f"optim: {{lr: '{NINES}'}}\n", "optim.lr must be between 0 and 1000"),
        ("train: {seed: 2026-13-45}\n", "'2026-13-45' is not a valid value (month must be"),
        ("train: {seed: 2026-12-12}\n", "train.seed must be a whole number"),
        ("[" * 50_000, "nested too deeply"),
        ("{a: " * 10_000, "nested too deeply"),
        ("- " * 30_000, "nested too deeply"),
        ("data:\n" + "".join(f"{' ' * i}a:\n" for i in range(1, 350)), "a.yaml: "),
        (f"plugins: [&a {'x/' * 15_000}{', *a' * 5000}]\n", "more than 65536 characters"),
        ("data: {augment: &a {x: *a}}\n", "more than 65536 characters"),
        ("optim: {lr: 1, lr: 2}\n", "the key 'lr' is repeated, see line 1"),
        (
            "optim:\n  lr: 1\ntrain: {}\noptim:\n  eps: 2\n",
            "a.yaml:4: not YAML: the key 'optim' is repeated, see line 1",
        ),
        ("data: {augment: {a: {b: 1, b: 2}}}\n", "'b' is repeated"),
        ("optim:\n\tlr: 1\n", "a.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("x" * 10_000_000, "longer than 65536 characters"),
        (f"optim: {{{'y' * 50_000}}}\n", "unknown key optim.yyy"),
        (f"data: {{filter: {'y' * 50_000}}}\n", "data.filter is one of bilinear"),
        (f"data: {{mean: {'y' * 50_000}}}\n", "data.mean must be 3 floats"),
        (f"optim: {'y' * 50_000}\n", "optim is a section"),
        (f"train: {{loss: {'y' * 50_000}}}\n", "must be cross_entropy or bce"),
        ('out: "a\\x1b[31mb"\n', "out must not contain control characters; found 'a\\x1b[31mb'"),
        ('data: {filter: "a\\nb"}\n', "found 'a\\nb'"),
        ('data: {"a\\nb": 1}\n', "unknown key data.a\\nb"),
        ("out: a\x1bb\n", "unacceptable character #x001b"),
        ("_BASE_: 5\n", "_BASE_ must be a file or a list of files"),
        ("_BASE_: [{}]\n", "_BASE_ must be a file or a list of files"),
        ("data: {augment: null}\n_BASE_: b.yaml\n", "b.yaml cannot be read"),
        ("[1]: 2\n", "found unhashable key"),
        ("!!bool x\n", "is not a valid value"),
        ("a: !!timestamp x\n", "is not a valid value"),
        ("!!python/object:os.system x\n", "could not determine a constructor"),
        (f"a: !{'y' * 50_000} x\n", "could not determine a constructor"),
    ],
)
def test_hostile_values_are_short_errors(write, text, words):
    assert words in fails(write, text)


@pytest.mark.parametrize(
    "override, words",
    [
        (f"optim.lr={NINES}", "is not a valid value"),
        ("train.seed=2026-13-45", "is not a valid value"),
        (f"data.mean={'[' * 50_000}", "nested too deeply"),
        (f"{'x' * 50_000}=1", "unknown key xxx"),
        ("x" * 50_000, "is not key=value"),
        (f"data.filter={'x' * 50_000}", "data.filter is one of"),
        ("data.augment={a: 1, a: 2}", "'a' is repeated"),
        ("optim.lr=\x1b", "unacceptable character"),
        ("out=a\0b", "must not contain control characters"),
    ],
)
def test_hostile_overrides_are_short_errors(write, override, words):
    assert words in fails(write, "", override)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"\0\1\2", b"PK\3\4" + bytes(1000), bytes(10_000_000)])
def test_a_binary_file_is_not_a_config(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.yaml(:| cannot be read)") as error:
        config.load_config(tmp_path / "a.yaml")
    assert str(error.value).isprintable()


def test_a_section_that_replaces_null_of_a_base_is_an_error(write):
    write("base.yaml", "data: {augment: null}\n")
    assert "Cannot inherit key 'augment'" in fails(write, "_BASE_: base.yaml\ndata: {augment: {Gray: {}}}\n")


PATHS = ["out", "weights", "data.root", "data.train", "data.val", "data.test", "data.list", "data.class_names"]


@pytest.mark.parametrize("key", [*PATHS, "train.init_from"])
@pytest.mark.parametrize("written", ["~/x", "$HOME/x", "${HOME}/x", "$PLACE/x"])
def test_home_and_variables_are_expanded_in_every_path(write, monkeypatch, tmp_path, key, written):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    section, _, name = key.rpartition(".")
    text = f'{section}: {{{name}: "{written}"}}\n' if section else f'{key}: "{written}"\n'
    for content, overrides in ((text, []), ("", [f"{key}={written}"])):
        assert config.flatten(config.load_config(write("a.yaml", content), overrides))[key] == f"{tmp_path}/x"


def test_all_path_keys_are_marked():
    marked = {key for key, f in config._schema().items() if f.metadata["path"]}
    assert marked == {*PATHS, "train.init_from", "plugins"}


def test_home_is_expanded_for_configs_bases_and_plugins(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("base.yaml", "optim: {lr: 0.5}\n")
    write("nam_plugin.py", "")
    write("a.yaml", "_BASE_: ~/base.yaml\nplugins: [$HOME/nam_plugin.py]\n")
    loaded = config.load_config("~/a.yaml")
    assert loaded.optim.lr == 0.5 and loaded.plugins == (f"{tmp_path}/nam_plugin.py",)
    assert config.load_config("${HOME}/a.yaml") == loaded


def test_a_path_that_exists_as_written_is_not_expanded(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~" / "x").mkdir(parents=True)
    (tmp_path / "a$HOME").mkdir()
    path = write("a.yaml", 'out: "~/x"\ndata: {root: "a$HOME"}\n')
    assert (config.load_config(path).out, config.load_config(path).data.root) == ("~/x", "a$HOME")
    assert config.load_config(path, ["data.root=cost$5"]).data.root == "cost$5"  # no name of a variable


@pytest.mark.parametrize(
    "value, words",
    [
        ("$NOT_SET_HERE/x", "data.root=$NOT_SET_HERE/x: the environment variable NOT_SET_HERE is not set"),
        ("${NOT_SET_HERE}/x", "the environment variable NOT_SET_HERE is not set"),
        ("~no_such_user/x", "no home folder of ~no_such_user"),
    ],
)
def test_an_unset_variable_is_an_error(write, value, words):
    with pytest.raises(UserError) as error:
        config.load_config(write("a.yaml", f'data: {{root: "{value}"}}\n'))
    assert words in str(error.value)


def test_similar_paths_are_resolved_with_a_note(write, tmp_path, capsys, monkeypatch):
    (tmp_path / "cafe\u0301").mkdir()
    (tmp_path / "cafe\u0301" / "Train.csv").touch()
    path = write("Mine.yaml", "data: {train: train.csv}\n")
    loaded = config.load_config(path, [f"data.root={tmp_path}/caf\u00e9"])
    assert loaded.data.root == f"{tmp_path}/cafe\u0301" and loaded.data.train == f"{loaded.data.root}/Train.csv"
    err = capsys.readouterr().err
    assert err.isascii() and err.startswith("note: data.root: '") and "U+00E9" in err and "e + U+0301" in err
    assert config.load_config(tmp_path / "mine.yaml") == config.load_config(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TIMM").mkdir()
    loaded = config.load_config(path, ["data.root=CAFE\u0301", "train.init_from=timm"])
    assert (loaded.data.root, loaded.train.init_from) == ("cafe\u0301", "timm")
    (tmp_path / "mine.YAML").touch()
    with pytest.raises(UserError, match=r"no such file or folder; .*mine.yaml' has .*; .*; give one of these"):
        config.load_config(tmp_path / "mine.yaml")


def test_missing_config_suggests_a_name():
    with pytest.raises(ConfigError, match="did you mean k400_rs50"):
        config.load_config("k400_rs5.yaml")
    with pytest.raises(ConfigError, match=r"; configs: charades_rs50, .* and \d+ more$"):
        config.load_config("runs/gone")


def test_differences_ignore_free_keys(write):
    path = write("a.yaml", "")
    old = config.load_config(path)
    free = config.load_config(path, ["data.workers=3", "out=elsewhere", "data.root=/moved", "test.clips=2"])
    assert config.differences(old.to_dict(), free) == {}
    with pytest.raises(ConfigError, match="train.class_weights=balanced: cannot be combined with"):
        config.load_config(path, ["train.class_weights=balanced", "train.balanced_sampling=true"])
    limits = config.load_config(path, ["data.timeout=5", "data.max_broken=0.5"])
    assert config.differences(old.to_dict(), limits) == {}
    strict = config.load_config(path, ["data.fps=15", "data.repeats=2"])
    assert config.differences(old.to_dict(), strict) == {"data.fps": (0, 15), "data.repeats": (1, 2)}
    strict = config.load_config(path, ["optim.lr=0.3"])
    assert config.differences(old.to_dict(), strict) == {"optim.lr": (0.8, 0.3)}


@pytest.mark.parametrize("override", ["train.class_weights=balanced", "train.balanced_sampling=true"])
def test_several_classes_a_file_have_no_balance(write, override):
    with pytest.raises(ConfigError, match=f"{override.partition('=')[0]}: requires files of one class"):
        config.load_config(write("a.yaml", "data: {multi_label: true}"), [override])


def test_several_classes_a_file_are_in_the_data_config(write):
    data_config = config.load_config(write("a.yaml", ""), ["data.multi_label=true"]).data_config()
    assert data_config.multi_label and DataConfig.from_dict(data_config.to_dict()) == data_config
    old = {key: value for key, value in data_config.to_dict().items() if key != "multi_label"}
    assert not DataConfig.from_dict(old).multi_label
    with pytest.raises(UserError, match="invalid multi_label"):
        DataConfig.from_dict({**old, "multi_label": 1})


def test_segments_have_no_frame_rate(write):
    with pytest.raises(ConfigError, match="data.fps=15: must be 0 with data.sampling=segments"):
        config.load_config(write("a.yaml", "data: {sampling: segments}"), ["data.fps=15"])


def test_the_temporal_sampling_is_in_the_data_config(write):
    data_config = config.load_config(write("a.yaml", ""), ["data.fps=12.5"]).data_config()
    assert (data_config.sampling, data_config.fps) == ("dense", 12.5)
    assert DataConfig.from_dict(data_config.to_dict()) == data_config
    segments = config.load_config(write("a.yaml", ""), ["data.sampling=segments"]).data_config()
    assert data_config.differences(segments) == {"sampling": ("dense", "segments"), "fps": (12.5, 0.0)}


def test_data_configs_of_older_checkpoints_are_dense_at_the_rate_of_the_file():
    old = {key: value for key, value in DataConfig().to_dict().items() if key not in ("sampling", "fps")}
    assert DataConfig.from_dict(old) == DataConfig(sampling="dense", fps=0.0)
    assert DataConfig.from_dict(old | {"fps": 30}).fps == 30  # JSON keeps no difference to 30.0


@pytest.mark.parametrize("field", [{"sampling": "bilinear"}, {"sampling": ["dense"]}, {"fps": -1}, {"fps": "30"}])
def test_impossible_temporal_sampling_in_a_data_config(field):
    (name,) = field
    with pytest.raises(UserError, match=f"x.pt is damaged: its data config has an invalid {name}"):
        DataConfig.from_dict(field, "x.pt")


def test_help_lists_every_key_of_the_schema():
    text = config.describe()
    for key in config.flatten(config.Config()):
        assert f"  {key} " in text
    assert (
        "  optim.weight_decay           float     4.0e-05        on weights of convolutions and linear layers" in text
    )
    assert "  model.dropout                float|null null" in text
    assert "(pyav | decord)" in text


def test_a_run_folder_is_a_config(tmp_path):
    run = config.load_config("motion_rs", ["optim.lr=0.125", f"out={tmp_path / 'before it was moved'}"])
    (tmp_path / "config.yaml").write_text(run.to_yaml())
    found = config.load_config(tmp_path)
    assert (found.optim.lr, found.out) == (0.125, str(tmp_path))
    assert config.load_config(str(tmp_path), ["out=elsewhere"]).out == "elsewhere"


@pytest.mark.parametrize("name", ["mine", "mine/", "./mine", "k400_rs50", "."])
def test_a_folder_is_its_config_also_beside_a_file_of_its_name(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for file in ("mine.yaml", "k400_rs50.yaml"):
        (tmp_path / file).write_text("optim: {lr: 0.5}")
    (folder / "config.yaml").write_text("optim: {lr: 0.125}\nout: elsewhere")
    found = config.load_config(name)
    assert found.optim.lr == 0.125 and Path(found.out).samefile(folder)


def test_a_folder_without_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "k400_rs50"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"^--cfg runs: a folder without config.yaml; "):
        config.load_config("runs")
    assert config.load_config("k400_rs50").out == "runs/k400_rs50"  # the one in configs/


def test_the_decoder_auto_of_old_configs_is_pyav(tmp_path):
    (tmp_path / "old.yaml").write_text("data: {decoder: auto}")
    old = config.load_config(tmp_path / "old.yaml")
    assert old.data.decoder == "pyav" == config.load_config("motion_rs", ["data.decoder=auto"]).data.decoder
    saved = old.to_dict()
    saved["data"]["decoder"] = "auto"  # as in a checkpoint and a config.yaml of version 0.1
    assert config.from_dict(saved) == old and not config.differences(saved, old)


@given(st.floats(1e-6, 900, allow_nan=False))
def test_floats_survive_an_override(value):
    nested = {}
    config._set(nested, "optim.lr", repr(value))
    assert nested["optim"]["lr"] == value


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "k400_rs50", "optim.lrr=1"], ["--cfg", "nowhere"], ["--cfg", "k400_rs50", "x"]]
)
def test_help_and_config_errors_leave_torch_alone(arguments):
    program = (
        "import sys, contextlib, io\n"
        "from video_rs.cli.common import run\n"
        "from video_rs.cli.train import main\n"
        "try: code = run(main, sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print('code', code, 'torch', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    expected = 0 if arguments == ["--help"] else 2
    assert done.stdout.splitlines()[-1] == f"code {expected} torch False"


def test_published_defaults():
    """tensorflow/models, k400_resnet3drs_50_tpu.yaml, item by item."""
    c = config.Config()
    assert (c.data.num_frames, c.data.stride, c.data.train_size, c.data.short_side, c.data.test_size) == (
        32,
        2,
        224,
        256,
        256,
    )
    assert (c.data.area, c.data.aspect, c.data.min_covered, c.data.flip) == ((0.08, 1.0), (0.5, 2.0), 0.1, 0.5)
    assert (c.train.batch_size, c.train.epochs, c.train.label_smoothing, c.train.ema_decay) == (1024, 350, 0.1, 0.9999)
    assert (c.optim.lr, c.optim.lr_batch, c.optim.momentum, c.optim.nesterov) == (0.8, 1024, 0.9, True)
    assert (c.optim.weight_decay, c.optim.warmup_epochs, c.optim.schedule) == (4e-5, 5.0, "cosine")
    assert (c.test.clips, c.test.crops, c.data.rand_augment_layers, c.data.mixup, c.data.cutmix) == (10, 3, 0, 0, 0)
    assert yaml.safe_load(c.to_yaml())["data"]["mean"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.phases=[[5, 16]]"], ["data.phases must be list of [float, int, int]", "[[5, 16]]"]),
        (["data.phases=[[5, 16, 160], [5, 16, 192]]"], ["data.phases: [5.0, 16, 192] must end after epoch 5"]),
        (["data.phases=[[0, 16, 160]]"], ["must end after epoch 0"]),
        (["data.phases=[[.inf, 16, 160]]"], ["must end after epoch 0"]),
        (["data.phases=[[350, 16, 160]]"], ["data.phases: must end before train.epochs=350", "at epoch 350"]),
        (["data.phases=[[5, 16, 8]]"], ["data.phases: [5.0, 16, 8]: data.train_size must be between 16 and 2048"]),
        (["data.phases=[[5, 0, 160]]"], ["data.num_frames must be between 1 and 1024"]),
        (["data.phases=[[5, 1, 160]]"], ["images and clips cannot be mixed"]),
        (
            ["data.color_jitter=[0.4, 0.4, 0.4, 0.6]"],
            ["0.6]: the hue must be at most 0.5"],
        ),
        (["data.color_jitter=[-1, 0, 0, 0]"], ["data.color_jitter must be at least 0"]),
        (["optim.name=rmsprop_tf"], ["optim.name is one of sgd, adamw, lamb", "did you mean rmsproptf?"]),
        (
            ["optim.options={alpha: 0.9}"],
            ["only for timm's optimizers, not for optim.name=sgd"],
        ),
        (["optim.options=alpha", "optim.name=rmsproptf"], ["optim.options must be dict or null; found 'alpha'"]),
        (
            ["optim.name=rmsproptf", "optim.eps=1e-3"],
            ["optim.eps=0.001: only for adamw and lamb, not for optim.name=rmsproptf; use optim.options={eps: 0.001}"],
        ),
        (["optim.name=adamp", "optim.betas=[0.8, 0.9]"], ["use optim.options={betas: [0.8, 0.9]}"]),
        (
            ["optim.name=lion", "train.device=xla"],
            ["optim.name=lion: not available with", "use sgd, adamw, lamb"],
        ),
        (["optim.momentum=0"], ["optim.nesterov=true: requires optim.momentum"]),
        (["optim.step_epochs=[30, 20]", "optim.schedule=step"], ["optim.step_epochs=[30.0, 20.0]: must ascend"]),
        (["optim.step_epochs=[30]"], ["optim.step_epochs=[30.0]: requires optim.schedule=step, not cosine"]),
        (
            ["optim.schedule=step", "optim.step_epochs=[10, 350]"],
            ["optim.step_epochs: must end before train.epochs=350; the last is after epoch 350"],
        ),
        (
            ["model.bn_momentum=1", "train.ema_decay=0"],
            ["model.bn_momentum=1: validation would use the statistics of one step; set train.ema_decay or precise_bn"],
        ),
        (["optim.step_epochs=[-30]"], ["optim.step_epochs must be at least 0"]),
        (
            ["train.loss=bce", "train.class_weights=balanced"],
            ["balanced: requires train.loss=cross_entropy"],
        ),
        (["train.freeze=2"], ["train.freeze=2: random weights would be frozen", "train.init_from"]),
        (["train.linear_probe=true"], ["train.linear_probe=true: random weights would be frozen"]),
        (
            ["train.freeze=2", "train.linear_probe=true"],
            ["cannot be combined with train.linear_probe=true"],
        ),
        (["data.mixup=1", "train.batch_size=7"], ["a micro-batch of 7: must be a multiple of 2"]),
        (["data.cutmix=1", "train.micro_batch=1"], ["a micro-batch of 1: must be a multiple of 2"]),
        (
            ["data.cutmix=1", "data.repeats=2", "train.micro_batch=2"],
            ["of 4 for data.mixup and data.cutmix with data.repeats=2", "change train.micro"],
        ),
    ],
)
def test_keys_that_do_not_go_together(write, overrides, words):
    with pytest.raises(ConfigError) as error:
        config.load_config(write("a.yaml", ""), overrides)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_options_of_an_optimizer(write):
    base = write("base.yaml", "optim: {name: rmsproptf, options: {alpha: 0.9, centered: true}}\n")
    loaded = config.load_config(base)
    assert loaded.optim.options == {"alpha": 0.9, "centered": True}
    assert config.load_config(write("b.yaml", loaded.to_yaml())).optim == loaded.optim
    assert config.differences(loaded.to_dict(), loaded) == {}
    changed = config.load_config(base, ["optim.options={alpha: 0.8}"])
    assert changed.optim.options == {"alpha": 0.8}
    assert list(config.differences(loaded.to_dict(), changed)) == ["optim.options"]


def test_lists_of_any_length(write):
    overrides = ["data.phases=[[2.5, 8, 112], [1e1, 16, 160]]", "optim.step_epochs=[3, 4.5]", "optim.schedule=step"]
    loaded = config.load_config(write("a.yaml", ""), overrides)
    assert loaded.data.phases == ((2.5, 8, 112), (10.0, 16, 160)) and loaded.optim.step_epochs == (3.0, 4.5)
    assert config.load_config(write("b.yaml", loaded.to_yaml())) == loaded == config.from_dict(loaded.to_dict())
    changed = config.load_config(write("a.yaml", ""), [overrides[0].replace("112", "128"), *overrides[1:]])
    assert list(config.differences(loaded.to_dict(), changed)) == ["data.phases"]
    assert "  data.phases                  list of [float, int, int] []" in config.describe()


@pytest.mark.parametrize(
    "setting", ["data.augment_on=device", "train.compile=true", "train.activation_checkpointing=[1]"]
)
def test_what_is_not_for_xla(setting):
    config.load_config("motion_rs.yaml", [setting])
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}.* not available with train.device=xla"):
        config.load_config("motion_rs.yaml", [setting, "train.device=xla"])
