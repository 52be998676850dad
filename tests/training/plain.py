"""The recipe as a plain torch loop: every key that changes a step is spelt out here once, without the package's code.

Only the batches, the numbers of dropout and drop path, and the draws of mixup and cutmix are the package's.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from video_rs.data.transforms.crops import normalize
from video_rs.data.transforms.mixing import draw_mix
from video_rs.models.layers import Conv
from video_rs.rng import sample_keys


def train(job, config, batches, steps):
    """Train the network of a job without its trainer; return weights, their EMA, rates, mean loss and accuracy."""
    data, optim, options, model = config.data, config.optim, config.train, job.model
    labels, size = job.records["train"].labels, options.batch_size
    micro, samples = options.micro_batch or size, len(job.records["train"]) * data.repeats
    weights = torch.ones(model.num_classes, dtype=torch.float64)
    if options.class_weights == "balanced":
        counts = np.bincount(labels)
        weights = torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float64)
    trained = {name: p for name, p in model.named_parameters() if not is_frozen(name, options)}
    norms = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.BatchNorm3d)}
    norms = {name: each for name, each in norms.items() if f"{name}.weight" in trained}
    momentum = config.model.bn_momentum or (1.0 if options.ema_decay else 0.1)
    for norm in norms.values():
        norm.momentum = 1.0  # its buffers are then the statistics of one batch
    running = {name: (torch.zeros_like(n.running_mean), torch.ones_like(n.running_var)) for name, n in norms.items()}
    state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in trained.items()}
    average = {name: value.clone() for name, value in model.state_dict().items()}
    decayed = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, (Conv, torch.nn.Linear))}
    total, warmup = math.ceil(options.epochs * samples / size), optim.warmup_epochs * samples / size
    peak, rates, losses, correct = optim.lr * size / optim.lr_batch, [], [], []

    def curve(at):
        if optim.schedule == "step":
            drops = [math.floor(options.epochs * of_90 / 90) * samples / size for of_90 in (30, 60, 80)]
            return peak * 0.1 ** sum(at >= drop for drop in drops)
        return peak * 0.5 * (1 + math.cos(math.pi * at / total))

    for step in range(steps):
        rates.append(step / warmup * curve(warmup) if step < warmup else curve(step))
        model.zero_grad()
        seen = {name: [] for name in norms}
        for first in range(0, size, micro):
            batch = next(batches)
            clips = normalize(batch["clip"], (0, 0, 0), (1, 1, 1), dtype=torch.float64)
            target = batch["label"].double() if data.multi_label else F.one_hot(batch["label"], len(weights)).double()
            if data.mixup or data.cutmix:
                clips, target = mixed(clips, target, config, step, first)
            keys = torch.from_numpy(sample_keys(options.seed, step, first + np.arange(len(clips))))
            logits = model(clips, keys)
            each = loss_of(logits, target, weights, config)
            (each.sum() / size).backward()
            losses += each.tolist()
            correct += [t[k] >= 0.5 for t, k in zip(target, logits.argmax(1))]
            for name, norm in norms.items():
                seen[name].append((norm.running_mean.clone(), norm.running_var.clone()))
        with torch.no_grad():
            for name, norm in norms.items():
                values = zip((norm.running_mean, norm.running_var), running[name], zip(*seen[name]))
                for buffer, before, of_batches in values:
                    buffer.copy_(statistics(before, of_batches, momentum))
                running[name] = norm.running_mean.clone(), norm.running_var.clone()
            length = torch.sqrt(sum(p.grad.square().sum() for p in trained.values()))
            for name, p in trained.items():
                g = p.grad * min(1, optim.clip_grad_norm / (length + 1e-6)) if optim.clip_grad_norm else p.grad
                decay = optim.weight_decay if name in decayed else 0
                rate, (v, s) = rates[step] * optim.layer_decay ** (9 - depth(name)), state[name]
                if optim.name == "adamw":
                    v.mul_(0.9).add_(0.1 * g)
                    s.mul_(0.999).add_(0.001 * g * g)
                    p *= 1 - rate * decay
                    p -= rate * (v / (1 - 0.9 ** (step + 1))) / ((s / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                else:
                    g = g + decay * p
                    v.mul_(0.9).add_(g)
                    p -= rate * (g + 0.9 * v)  # Nesterov
            d = min(options.ema_decay, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                average[name] = average[name] * d + value * (1 - d) if value.is_floating_point() else value.clone()
    return model.state_dict(), average, rates, np.mean(losses), np.mean(correct)


def is_frozen(name, options):
    """Return True if a parameter of a ResNet-RS is frozen: the stem is the first of the frozen stages."""
    if options.linear_probe:
        return not name.startswith("head.")
    stages = ["stem.", *(f"stages.{i}." for i in range(4))]
    return name.startswith(tuple(stages[: options.freeze])) if options.freeze else False


def depth(name):
    """Return the depth of a parameter of ResNet-RS-26: the stem, two blocks in each of four stages, the head."""
    part, *numbers = name.split(".")
    return {"stem": 0, "head": 9}[part] if part != "stages" else 1 + 2 * int(numbers[0]) + int(numbers[1])


def mixed(clips, target, config, step, first):
    """Mix a micro-batch pair by pair: samples `repeats` apart."""
    data, apart = config.data, config.data.repeats
    kinds = (data.mixup, data.cutmix)
    draws = draw_mix(config.train.seed, step, config.train.batch_size, *clips.shape[-2:], *kinds, apart)
    new, targets = clips.clone(), target.clone()
    for i in range(len(clips)):
        group, place = divmod(i, 2 * apart)
        other = 2 * apart * group + (place + apart) % (2 * apart)
        pair = (first + 2 * apart * group) // 2 + place % apart
        own, blend, (top, bottom, left, right) = draws.own[pair], draws.blend[pair], draws.boxes[pair]
        new[i] = blend * clips[i] + (1 - blend) * clips[other]
        new[i, ..., top:bottom, left:right] = clips[other, ..., top:bottom, left:right]
        targets[i] = own * target[i] + (1 - own) * target[other]
    return new, targets


def loss_of(logits, target, weights, config):
    """Return the loss of each sample: class by class, the loss of a hard label times its weight."""
    smoothing, classes = config.train.label_smoothing, logits.shape[1]
    if config.data.multi_label or config.train.loss == "bce":
        towards = 0.5 if config.data.multi_label else 1 / classes
        smooth = target * (1 - smoothing) + smoothing * towards
        return -(smooth * F.logsigmoid(logits) + (1 - smooth) * F.logsigmoid(-logits)).mean(1)
    total = 0
    for k in range(classes):
        smooth = torch.full((classes,), smoothing / classes, dtype=torch.float64)
        smooth[k] += 1 - smoothing
        total = total - target[:, k] * weights[k] * (smooth * logits.log_softmax(1)).sum(1)
    return total


def statistics(before, of_batches, momentum):
    """Return running statistics after a step, from the statistics of its micro-batches."""
    if momentum == 1:
        return sum(of_batches) / len(of_batches)
    for value in of_batches:
        before = (1 - momentum) * before + momentum * value
    return before
