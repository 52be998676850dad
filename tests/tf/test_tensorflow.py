"""Whole networks in TensorFlow's own implementations against ours, by way of their files: ``make test-tf``.

Each network is made in TensorFlow with random weights, written as its own tools write it, and converted by the
script. Then the logits and the output of every stage must agree, at even and at odd sizes, which are padded otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from tools import convert_tensorflow
from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.models.registry import create_model

pytestmark = pytest.mark.tf

TOLERANCE = 1e-5  # float32: largest absolute difference over largest absolute value
SIZES_3D = ((2, 8, 96, 96), (1, 9, 97, 83))  # N, T, H, W
SIZES_2D = ((2, 160, 160), (1, 161, 131))
NAMES = ("stage 1", "stage 2", "stage 3", "stage 4", "logits")
Outputs = dict[str, np.ndarray]


@dataclass
class Case:
    """A network in TensorFlow, written to a file.

    Attributes:
        source, path, model: what the command is told, and the network that it must find out.
        outputs: for each input (channels last), the logits and the stages' outputs.
    """

    source: str
    path: Path
    model: str
    outputs: list[tuple[np.ndarray, Outputs]] = field(default_factory=list)


@pytest.fixture(scope="module")
def tf(request):
    """The module. Where these tests were asked for by their marker, its absence is a failure."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tf.compat.v1.layers need it
    try:
        tensorflow = convert_tensorflow.import_tensorflow()
        import tf_keras  # noqa: F401
    except (UserError, ImportError) as error:
        missing = pytest.fail if request.config.option.markexpr.startswith("tf") else pytest.skip
        missing(f"TensorFlow cannot be used here: {error}")
    tensorflow.random.set_seed(0)
    return tensorflow


@pytest.fixture(scope="module")
def table(request) -> Iterator[list[list[str]]]:
    """Rows that are printed at the end, past pytest's capture."""
    rows = [["relative error of", "input", *NAMES], ["---"] * (2 + len(NAMES))]
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n", *(f"| {' | '.join(row)} |" for row in rows), sep="\n", flush=True)


def inputs(sizes) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((*size, 3), dtype=np.float32) for size in sizes]


def randomise(tf, layers, *, last: Callable[[object], bool]) -> None:
    """Scales and shifts as after some training; small scales at the end of a block keep deep sums in range."""
    generator = np.random.default_rng(1)
    for layer in layers:
        if hasattr(layer, "gamma"):
            low, high = (0.1, 0.3) if last(layer) else (0.8, 1.2)
            layer.gamma.assign(generator.uniform(low, high, layer.gamma.shape))
            layer.beta.assign(generator.normal(0, 0.1, layer.beta.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(generator.normal(0, 0.5, layer.bias.shape))


def save_trained(tf, model, arguments: dict, folder: Path) -> Path:
    """The checkpoint of a garden trainer after a step: the weights so far are the averages, the variables others.

    A second one, ``best_ckpt-1``, has the two swapped, as the trainer's exports do.
    """
    import tf_keras
    from official.modeling.optimization import ema_optimizer

    sgd = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9, nesterov=True)
    optimizer = ema_optimizer.ExponentialMovingAverage(sgd, trainable_weights_only=False, average_decay=0.9999)
    optimizer.shadow_copy(model)
    averages = [variable.numpy() for variable in model.variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(**arguments, training=True)))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    for variable, average in zip(model.variables, averages, strict=True):
        optimizer.get_slot(variable, "average").assign(average)
    step = tf.Variable(1, dtype=tf.int64)
    saved = tf.train.Checkpoint(global_step=step, model=model, optimizer=optimizer, **model.checkpoint_items)
    path = tf.train.CheckpointManager(saved, str(folder), max_to_keep=1).save()
    for variable in model.variables:  # optimizer.swap_weights() wants a distribution strategy
        average = optimizer.get_slot(variable, "average")
        before = variable.numpy()
        variable.assign(average)
        average.assign(before)
    tf.train.CheckpointManager(saved, str(folder / "best"), max_to_keep=1, checkpoint_name="best_ckpt").save()
    return Path(path)


def garden_3d(tf, folder: Path) -> Case:
    import tf_keras
    from official.vision.modeling.backbones import resnet_3d
    from official.vision.modeling.video_classification_model import VideoClassificationModel

    specs = tf_keras.layers.InputSpec(shape=[None, None, None, None, 3])
    backbone = resnet_3d.ResNet3D(
        50,
        temporal_strides=[1, 1, 1, 1],
        temporal_kernel_sizes=[[1] * 3, [1] * 4, [3] * 6, [3] * 3],
        use_self_gating=[1, 1, 1, 1],
        input_specs=specs,
        stem_type="v1",
        stem_pool_temporal_stride=1,
        se_ratio=0.25,
        norm_momentum=0.0,
        norm_epsilon=1e-5,
    )
    model = VideoClassificationModel(backbone, num_classes=400, input_specs={"image": specs})
    return garden(tf, folder, model, lambda x: {"inputs": {"image": x}}, "garden_resnet3d_rs_50", SIZES_3D)


def garden_2d(tf, folder: Path) -> Case:
    import tf_keras
    from official.vision.modeling.backbones import resnet
    from official.vision.modeling.classification_model import ClassificationModel

    specs = tf_keras.layers.InputSpec(shape=[None, None, None, 3])
    backbone = resnet.ResNet(
        50,
        specs,
        stem_type="v1",
        resnetd_shortcut=True,
        replace_stem_max_pool=True,
        se_ratio=0.25,
        activation="swish",
        norm_momentum=0.0,
        norm_epsilon=1e-5,
    )
    model = ClassificationModel(backbone, num_classes=1001, input_specs=specs)
    return garden(tf, folder, model, lambda x: {"inputs": x}, "garden_resnet_rs_50", SIZES_2D)


def garden(tf, folder: Path, model, arguments, name: str, sizes) -> Case:
    last = {id(block._norm3) for block in model.backbone.layers if hasattr(block, "_norm3")}
    randomise(tf, model.submodules, last=lambda layer: id(layer) in last)
    batches = inputs(sizes)
    model(**arguments(batches[0]), training=True)  # with a momentum of 0, its statistics stay
    outputs = []
    for batch in batches:
        endpoints = {f"stage {int(key) - 1}": value.numpy() for key, value in model.backbone(batch).items()}
        outputs.append((batch, endpoints | {"logits": model(**arguments(batch), training=False).numpy()}))
    small = batches[1][..., :40, :40, :]
    return Case("garden", save_trained(tf, model, arguments(small), folder), name, outputs)


def keras(tf, folder: Path) -> Case:
    import tf_keras

    def make(size):  # a network with its classifier is for images of one size
        return tf_keras.applications.resnet_rs.ResNetRS50(
            weights=None, include_preprocessing=False, classifier_activation=None, input_shape=(*size, 3)
        )

    model = make(SIZES_2D[0][1:])
    randomise(tf, model.layers, last=lambda layer: layer.name.endswith("batch_norm_3"))
    batches = inputs(SIZES_2D)
    model(batches[0], training=True)
    ends = [f"BlockGroup{stage + 2}__block_{blocks - 1}__output_act" for stage, blocks in enumerate((3, 4, 6, 3))]
    outputs = []
    for x in batches:
        sized = make(x.shape[1:-1])
        sized.set_weights(model.get_weights())
        tensors = {f"stage {i + 1}": sized.get_layer(end).output for i, end in enumerate(ends)}
        values = tf_keras.Model(sized.input, tensors | {"logits": sized.output})(x, training=False)
        outputs.append((x, {name: value.numpy() for name, value in values.items()}))
    model.save_weights(folder / "resnet-rs-50.h5")
    return Case("keras", folder / "resnet-rs-50.h5", "resnet_rs_50", outputs)


def tpu(tf, folder: Path) -> Case:
    """A TF1 graph of the published description (narrow, of depth 26), whose layers TensorFlow names itself."""
    v1 = tf.compat.v1
    batches = inputs(SIZES_2D)
    with tf.Graph().as_default(), v1.Session() as session:
        images, training = v1.placeholder(tf.float32, [None, None, None, 3]), v1.placeholder(tf.bool, [])
        tensors = tpu_network(tf, images, training, blocks=(2, 2, 2, 2), width=16)
        session.run(v1.global_variables_initializer())
        generator = np.random.default_rng(2)
        for variable in v1.trainable_variables():
            if "gamma" in variable.name:
                variable.load(generator.uniform(0.3, 0.6, variable.shape), session)
            elif "beta" in variable.name or "bias" in variable.name:
                variable.load(generator.normal(0, 0.1, variable.shape), session)
        session.run(v1.get_collection(v1.GraphKeys.UPDATE_OPS), {images: batches[0], training: True})
        outputs = [(x, session.run(tensors, {images: x, training: False})) for x in batches]
        average = tf.train.ExponentialMovingAverage(0.9999)
        weights = v1.trainable_variables() + [v for v in v1.global_variables() if "/moving_" in v.name]
        update, step = average.apply(weights), v1.train.get_or_create_global_step()
        session.run(v1.variables_initializer([step, *(average.average(weight) for weight in weights)]))
        session.run(update)  # the averages are the weights so far; the variables go on
        for weight in weights:
            weight.load(session.run(weight) + 1, session)
        path = v1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=1)
    return Case("tpu", Path(path), "resnet_rs_26", outputs)


def tpu_network(tf, x, training, *, blocks, width: int) -> dict:
    layers = tf.compat.v1.layers

    def conv(x, filters: int, size: int, stride: int = 1, activate: bool = True):
        if stride > 1:  # symmetric, whatever the size
            x = tf.pad(x, [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]])
        x = layers.conv2d(x, filters, size, stride, padding="valid" if stride > 1 else "same", use_bias=False)
        x = layers.batch_normalization(x, momentum=0.0, epsilon=1e-5, training=training)
        return tf.nn.relu(x) if activate else x

    for filters, stride in ((width // 2, 2), (width // 2, 1), (width, 1), (width, 2)):
        x = conv(x, filters, 3, stride)
    outputs = {}
    for stage, count in enumerate(blocks):
        filters, shortcut = width * 2**stage, None
        for block in range(count):
            stride = 2 if stage and not block else 1
            shortcut = x
            if not block:
                pooled = tf.nn.avg_pool2d(x, 2, 2, "SAME") if stride > 1 else x
                shortcut = conv(pooled, 4 * filters, 1, activate=False)
            x = conv(conv(x, filters, 1), filters, 3, stride)
            x = conv(x, 4 * filters, 1, activate=False)
            squeezed = layers.conv2d(tf.reduce_mean(x, [1, 2], keepdims=True), filters, 1, activation=tf.nn.relu)
            x = tf.nn.relu(x * layers.conv2d(squeezed, 4 * filters, 1, activation=tf.nn.sigmoid) + shortcut)
        outputs[f"stage {stage + 1}"] = x
    return outputs | {"logits": layers.dense(tf.reduce_mean(x, [1, 2]), 10)}


def converted(case: Case, out: Path, *options: str) -> dict:
    """What the command writes."""
    assert convert_tensorflow.main(["--from", case.source, str(case.path), "--out", str(out), *options]) == 0
    state = checkpoint.load_run(out)
    out.unlink()
    return state


def relative_errors(state: dict, case: Case) -> Iterator[tuple[str, dict[str, float]]]:
    """Of the network in a checkpoint, for every input: its size, and the error of every output."""
    model = create_model(**state["model_args"]).eval()
    model.load_state_dict(state["model"])
    ends: list[torch.Tensor] = []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda module, args, output: ends.append(output))
    for x, expected in case.outputs:
        ends.clear()
        with torch.inference_mode():
            logits = model(torch.from_numpy(x).movedim(-1, 1))
        errors = {}
        for name, output in zip(NAMES, [*ends, logits], strict=True):
            theirs = expected[name]
            ours = output.movedim(1, -1).numpy().reshape(theirs.shape)
            errors[name] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        yield "x".join(map(str, x.shape[1:-1])), errors


@pytest.mark.parametrize("make", [garden_3d, garden_2d, keras, tpu], ids=lambda make: make.__name__)
def test_equals_tensorflow(tf, table, tmp_path, make):
    case = make(tf, tmp_path)
    state = converted(case, tmp_path / "converted.safetensors")
    assert state["model_args"]["name"] == case.model
    for size, errors in relative_errors(state, case):
        table.append([f"`{case.model}` ({case.source})", size, *(f"{errors[name]:.1e}" for name in NAMES)])
        assert max(errors.values()) < TOLERANCE
    if case.source == "garden":
        check_averages(case, state, tmp_path)


def check_averages(case: Case, state: dict, folder: Path) -> None:
    """The variables are other weights, and in the export they are what the averages are here."""
    raw = converted(case, folder / "raw.pt", "--no-averages")
    case.path = folder / "best"
    swapped = converted(case, folder / "swapped.pt")
    apart = {
        name: max((other["model"][key] - state["model"][key]).abs().max().item() for key in state["model"])
        for name, other in (("raw", raw), ("swapped", swapped))
    }
    assert apart["swapped"] == 0 < apart["raw"]
