"""Train the digits network with every weight rule, and print what its integers recognize.

    python examples/train_digits.py [--seed 0 1 2] [--epochs 5]

Every row begins at the same post-training quantization of the same float network; the accuracy is that of the integers,
on the 449 test images. A quarter of a point is one image.
"""

import argparse

import torch

import nomul
from nomul import digits
from nomul.quantize.train import Absmean, Discrete, StraightThrough, Tga, TrainConfig, Ttq, accuracy, train

#: Name, format of the weights, bits of the activations, rule.
RULES = [
    ("straight-through", "ternary", 8, StraightThrough()),
    ("TGA", "ternary", 8, Tga()),
    ("TGA, per channel", "ternary", 8, Tga(per="channel", centre=False)),
    ("TGA, from float weights", "ternary", 8, Tga(start_at="normal")),
    ("TGA, the paper's start", "ternary", 8, Tga(start_at="max", gain=False)),
    ("absmean", "ternary", 8, Absmean()),
    ("TTQ", "exp4", 8, Ttq()),
    ("straight-through", "pot3", 8, StraightThrough()),
    ("DeepShift-Q", "pot4", 8, StraightThrough(learned_step=False, rounding="log")),
    ("discrete", "pot3z", 8, Discrete()),
    ("its shadow weights", "pot3z", 8, StraightThrough(learned_step=False)),
    ("discrete", "pot3z", 4, Discrete()),
    ("its shadow weights", "pot3z", 4, StraightThrough(learned_step=False)),
    ("straight-through", "ternary", 2, StraightThrough()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = digits.load()
    x, y, test_x, test_y = map(torch.from_numpy, (data.train_x, data.train_y, data.test_x, data.test_y))
    print(f"{'rule':24} {'weights':8} {'activations':11} {'seed':>4} {'float':>7} {'started':>8} {'trained':>8}")
    for seed in arguments.seed:
        model = digits.train(seed)
        best = accuracy(model, test_x, test_y)
        for name, fmt, act_bits, rule in RULES:
            network = nomul.quantize(model, x[:256], format=fmt, act_bits=act_bits).with_rule(rule)
            network.mode = "integer"
            started = accuracy(network, test_x, test_y)
            # One pass per batch trains thresholds and weights together, in half the time of TGA's two.
            train(network, x, y, TrainConfig(arguments.epochs, batch=64, rate=2e-3, threshold_pass=False,
                                             threshold_rate=1e-2, seed=seed))
            network.mode = "integer"
            print(f"{name:24} {fmt:8} {act_bits:11} {seed:4} {best:7.2%} {started:8.2%} "
                  f"{accuracy(network, test_x, test_y):8.2%}", flush=True)


if __name__ == "__main__":
    main()
