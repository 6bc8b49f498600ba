"""The Python API in one page: train a network, quantize it, compile it, count its cycles, prove it on RTL.

    python examples/python_api.py
"""

from pathlib import Path

import nomul
from nomul import digits

HERE = Path(__file__).parent


def main() -> None:
    # Any torch.nn.Module of convolutions, linear layers, batch norms, ReLUs and pools will do.
    data = digits.load()
    model = digits.train(epochs=10)

    # An array of 4 x 4 elements with weights {-1, 0, 1}: examples/ternary_4x4.toml says what there is to choose.
    config = nomul.load_config(HERE / "ternary_4x4.toml")

    # From float to integers. The graph holds no floating-point number; nothing is left in float.
    graph = nomul.quantize(model, data.train_x[:256], nomul.QuantizeConfig(config.format)).graph

    # From the graph to what the machine's memories hold. Fails, with the layer's name, if a sum could overflow.
    program = nomul.compile(graph, config)

    # Cycles of one image, exact.
    estimate = program.estimate()
    for layer in estimate.layers:
        print(f"{layer.name:>4}: {layer.cycles:6,} cycles, {layer.macs:9,} multiply-accumulates without a multiplier")
    print(f" all: {estimate.cycles:6,} cycles, {estimate.utilisation:.1%} of the array's products are needed")

    # The golden model and the generated RTL, simulated by Verilator, are the same kind of thing: a device.
    codes = graph.quantize_input(data.test_x)  # (449, 1, 8, 8), int8
    result = nomul.GoldenDevice().run(program, codes)
    classes = result.outputs.reshape(len(codes), 10).argmax(axis=1)
    print(f"{(classes == data.test_y).mean():.1%} of {len(codes)} test images are recognized")

    device = nomul.VerilatedDevice(config)  # elaborated and built on first use
    check = nomul.verify(program, codes[:64], device)
    print(f"RTL: {check.mismatches} of {check.bits:,} output bits differ, {check.cycles[0]:,} cycles per image")
    assert check.ok


if __name__ == "__main__":
    main()
