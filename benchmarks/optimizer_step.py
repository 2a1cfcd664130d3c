"""Cost of one optimizer step, and its memory, on the parameters of a PRISM of the paper's size (8.7 million numbers).

Steps of all optimizers are interleaved, round by round, on the same gradients; the table gives medians, as ratios to
torch's fused Adam too. Memory is what the state holds between steps, in vectors as long as the parameters. RodFlow's
gradients are not computed.

    python benchmarks/optimizer_step.py --threads 1
"""

import argparse
import statistics
import time

import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from prism_plugin import PRISM
from prism_plugin.optim import ELRA, RodFlow

MAKERS = {
    "Adam, fused": lambda params: Adam(params, lr=1e-6, fused=True),
    "Adam, foreach": lambda params: Adam(params, lr=1e-6, foreach=True),
    "Adam, one by one": lambda params: Adam(params, lr=1e-6, foreach=False),
    "AdamWScheduleFree": lambda params: AdamWScheduleFree(params, lr=1e-6),
    "SGD": lambda params: SGD(params, lr=1e-6),
    "ELRA": lambda params: ELRA(params),
    "ELRA, foreach": lambda params: ELRA(params, foreach=True),
    "ELRA, low memory": lambda params: ELRA(params, low_memory=True),
    "ELRA, no retrace": lambda params: ELRA(params, retrace=False),
    "ELRA, boost": lambda params: ELRA(params, boost=True),
    "RodFlow like SGD": lambda params: RodFlow(params, SGD(params, lr=1e-6), warmup=1),
    "RodFlow like Adam": lambda params: RodFlow(params, Adam(params, lr=1e-6), warmup=1),
    "RodFlow like Adam, no floor": lambda params: RodFlow(params, Adam(params, lr=1e-6), warmup=1, floor=False),
}


def step(optimizer: Optimizer, parameters: list[nn.Parameter], gradients: list[torch.Tensor]) -> None:
    def closure() -> float:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return 1.0

    if isinstance(optimizer, RodFlow):  # its four evaluations cost nothing here but the copies that it makes of them
        optimizer.step(closure)
    elif isinstance(optimizer, ELRA):
        optimizer.step(loss=1.0)
    else:
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = [parameter.shape for parameter in PRISM().parameters()]
    numbers = sum(shape.numel() for shape in shapes)
    contestants = {}
    for name, make in MAKERS.items():
        params = [nn.Parameter(torch.randn(shape, device=arguments.device) * 0.1) for shape in shapes]
        contestants[name] = make(params), params
        if hasattr(contestants[name][0], "train"):
            contestants[name][0].train()
    gradients = [[torch.randn(shape, device=arguments.device) * 1e-3 for shape in shapes] for _ in range(2)]
    seconds: dict[str, list[float]] = {name: [] for name in MAKERS}
    for number in range(arguments.rounds + 3):
        for name, (optimizer, params) in contestants.items():
            for parameter, gradient in zip(params, gradients[number % 2], strict=True):
                parameter.grad = gradient
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            step(optimizer, params, gradients[number % 2])
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            if number >= 3:
                seconds[name].append(time.perf_counter() - started)
    fused = statistics.median(seconds["Adam, fused"])
    print(f"{numbers:,} numbers in {len(shapes)} tensors, {arguments.device}, {arguments.threads} threads")
    print("| optimizer | ms per step | to fused Adam | memory, vectors |\n|---|---|---|---|")
    for name, (optimizer, _) in contestants.items():
        kept = sum(v.numel() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
        median = statistics.median(seconds[name])
        print(f"| {name} | {1000 * median:.1f} | {median / fused:.2f} | {kept / numbers:.1f} |")


if __name__ == "__main__":
    main()
