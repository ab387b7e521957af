"""The work in PyTorch: Opacus, and torch.func."""

import sys
import warnings

import numpy as np
import opacus
import torch
import worker
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

warnings.filterwarnings("ignore")  # Opacus's full backward hooks, at every step


class Convolution(nn.Conv2d):
    """Conv2d with TensorFlow's "same" padding, which is uneven for even sizes."""

    def __init__(self, channels, filters, size, stride):
        super().__init__(channels, filters, size, stride, bias=False)

    def forward(self, x):
        """Pads so that the output has ceil(size / stride) rows and columns."""
        size, stride, length = self.kernel_size[0], self.stride[0], x.shape[-1]
        missing = max((-(-length // stride) - 1) * stride + size - length, 0)
        before, after = missing // 2, missing - missing // 2
        return super().forward(functional.pad(x, (before, after, before, after)))


class Block(nn.Module):
    """A pre-activation residual block."""

    def __init__(self, channels, filters, stride):
        super().__init__()
        self.norm_in = nn.GroupNorm(worker.GROUPS, channels, worker.EPSILON)
        self.shortcut = (
            Convolution(channels, filters, 1, stride) if channels != filters else None
        )
        self.first = Convolution(channels, filters, 3, stride)
        self.norm_out = nn.GroupNorm(worker.GROUPS, filters, worker.EPSILON)
        self.second = Convolution(filters, filters, 3, 1)

    def forward(self, x):
        """[n,C,H,W] -> [n,filters,H/stride,W/stride]."""
        active = functional.relu(self.norm_in(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = functional.relu(self.norm_out(self.first(active)))
        return shortcut + self.second(y)


class WideResNet(nn.Module):
    """WRN-16-4."""

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, 16, 3, 1)
        blocks, channels = [], 16
        for stage, filters in enumerate((64, 128, 256)):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Block(channels, filters, stride))
                channels = filters
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(worker.GROUPS, channels, worker.EPSILON)
        self.logits = nn.Linear(channels, 10)

    def forward(self, images):
        """[n,3,32,32] -> [n,10]."""
        x = self.blocks(self.stem(2 * images - 1))
        return self.logits(functional.relu(self.norm(x)).mean((2, 3)))


def build(work):
    """The network with the work's weights."""
    network = WideResNet()
    modules = list(network.modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
    normalisations = [m for m in modules if isinstance(m, nn.GroupNorm)]
    with torch.no_grad():
        for module, kernel in zip(convolutions, work.convolutions, strict=True):
            module.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1)))
        for module, scale, offset in zip(
            normalisations, work.scales, work.offsets, strict=True
        ):
            module.weight.copy_(torch.tensor(scale))
            module.bias.copy_(torch.tensor(offset))
        network.logits.weight.copy_(torch.tensor(work.kernel.T))
        network.logits.bias.copy_(torch.tensor(work.bias))
    return network


def main(path):
    """Serves."""
    work = worker.load(path)
    examples, count = work.views.shape[:2]
    views = torch.tensor(np.ascontiguousarray(work.views.transpose(0, 1, 4, 2, 3)))
    labels = torch.tensor(work.labels)
    flat_views, flat_labels = views.flatten(0, 1), labels.flatten(0, 1)

    network = build(work)
    sgd = torch.optim.SGD(network.parameters(), worker.LEARNING_RATE)

    def plain():
        sgd.zero_grad()
        functional.cross_entropy(network(flat_views), flat_labels).backward()
        sgd.step()

    private_network = opacus.GradSampleModule(build(work), loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(private_network.parameters(), worker.LEARNING_RATE),
        noise_multiplier=worker.NOISE_MULTIPLIER,
        max_grad_norm=worker.CLIP_NORM,
        expected_batch_size=examples,
    )

    def average_views():
        """Per-view gradients -> per-example gradients, as De et al. do in Opacus."""
        optimizer.zero_grad()
        logits = private_network(flat_views)
        functional.cross_entropy(logits, flat_labels).backward()
        for parameter in private_network.parameters():
            samples = parameter.grad_sample
            parameter.grad_sample = samples.unflatten(0, (examples, count)).mean(1)

    def with_opacus():
        average_views()
        optimizer.step()

    def opacus_sum():
        average_views()
        optimizer.clip_and_accumulate()
        return [p.summed_grad.numpy() for p in private_network.parameters()]

    parameters = {n: p.detach() for n, p in build(work).named_parameters()}

    def loss(parameters, views, labels):
        logits = functional_call(network, parameters, (views,))
        return functional.cross_entropy(logits, labels)

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))

    def vmap_sum():
        gradients = per_example(parameters, views, labels)
        squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
        lengths = torch.stack(squares).sum(0).sqrt()
        factors = (worker.CLIP_NORM / lengths.clamp(min=1e-12)).clamp(max=1.0)
        return {
            name: torch.einsum("n,n...->...", factors, gradient)
            for name, gradient in gradients.items()
        }

    def with_vmap():
        deviation = worker.NOISE_MULTIPLIER * worker.CLIP_NORM
        for name, total in vmap_sum().items():
            noisy = total + deviation * torch.randn_like(total)
            parameters[name] -= worker.LEARNING_RATE / examples * noisy

    worker.serve(
        f"Opacus {opacus.__version__}, torch {torch.__version__}",
        {"plain": plain, "Opacus": with_opacus, "torch.func": with_vmap},
        {
            "Opacus": opacus_sum,
            "torch.func": lambda: [part.numpy() for part in vmap_sum().values()],
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
