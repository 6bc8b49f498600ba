"""Post-training quantization of published networks, format by format, beside their float outputs.

    python -m nomul.bench.post_training ds_cnn kws_dscnn_fp32.npz --keywords kws_mfcc.npz
    python -m nomul.bench.post_training mobilenet_v2 mobilenet_v2_1.0_224_quant.npz bird.bmp cat.bmp owl.jpg dog.jpg

Keyword clips have labels: 200 of them calibrate, the others are counted. Photos have none: crops of every other photo
calibrate, and crops of the others show how often the quantized network's first choice is the float network's.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from nomul.frontend import FloatGraph
from nomul.graph import Graph
from nomul.quantize import QuantizeConfig, QuantizeError, quantize_report
from nomul.quantize.report import sqnr_db
from nomul_sim import golden

from .networks import NETWORKS, BenchError, keywords, photos

__all__ = ["Result", "compare"]

#: Clips that calibrate and are not counted.
CLIPS = 200

#: Samples that run at once.
BATCH = 16


@dataclass(frozen=True)
class Result:
    """How a quantized network does on inputs that calibration has not seen.

    Parameters
    ----------
    format, method : str
    logit_sqnr : float
        Power of the float outputs over that of the error, dB.
    first : float
        Share of the inputs whose first choice is the float network's.
    in_five : float
        Share of the inputs whose five first choices hold the float network's first.
    accuracy : float or None
        Share of the inputs that are classified as labelled.
    seconds : float
        CPU time of quantization.
    """

    format: str
    method: str
    logit_sqnr: float
    first: float
    in_five: float
    accuracy: float | None
    seconds: float


def compare(network: FloatGraph, calibration: npt.NDArray[Any], inputs: npt.NDArray[Any], config: QuantizeConfig,
            labels: npt.NDArray[np.int64] | None = None, wanted: npt.NDArray[np.float64] | None = None) -> Result:
    """Quantize a network, and run it on other inputs.

    Parameters
    ----------
    network : FloatGraph
    calibration, inputs : arrays of real numbers, shape (N, ...)
    config : QuantizeConfig
    labels : int64 array, shape (N,), optional
    wanted : float64 array, shape (N, classes), optional
        What the float network makes of ``inputs``, if it is known.
    """
    start = process_time()
    graph, _ = quantize_report(network, calibration, config)
    seconds = process_time() - start
    wanted = _float(network, inputs) if wanted is None else wanted
    outputs = _integer(graph, inputs)
    best = wanted.argmax(axis=1)
    five = np.argsort(-outputs, axis=1)[:, :5]
    return Result(config.format.name, config.method, sqnr_db(wanted, outputs),
                  float((outputs.argmax(axis=1) == best).mean()), float((five == best[:, None]).any(axis=1).mean()),
                  None if labels is None else float((outputs.argmax(axis=1) == labels).mean()), seconds)


def _float(network: FloatGraph, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.concatenate([network.run(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)])


def _integer(graph: Graph, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    parts = [golden.run(graph, graph.quantize_input(inputs[at : at + BATCH]))[graph.output]
             for at in range(0, len(inputs), BATCH)]
    return graph.dequantize_output(np.concatenate(parts)).reshape(len(inputs), -1)


def main(
    network: Annotated[str, typer.Argument(help=f"One of {', '.join(NETWORKS)}.")],
    weights: Annotated[Path, typer.Argument(help="The network's weights (.npz).", exists=True, dir_okay=False)],
    images: Annotated[list[Path] | None, typer.Argument(help="Photos, two at the least.", exists=True)] = None,
    clips: Annotated[Path | None, typer.Option("--keywords", help="Clips' features and labels (.npz).")] = None,
    formats: Annotated[str, typer.Option(help="Weight formats.")] = "exp5,exp4,pot4,pot3,ternary,int4,int3",
    methods: Annotated[str, typer.Option(help="Methods.")] = "nearest,gptq",
    equalization: Annotated[float, typer.Option(help="Share of equalisation before.")] = 0.0,
    steps: Annotated[str, typer.Option(help="Steps of channels: error, or a rule that looks at weights alone: "
                                            "correlation, range, mean or laplacian.")] = "error",
    damping: Annotated[float, typer.Option(help="How little gptq and adaround trust calibration.")] = 0.1,
    activations: Annotated[str, typer.Option(help="Scales of activations: error, percentile or max.")] = "error",
    crops: Annotated[int, typer.Option(help="Crops of every photo, mirror images included.", min=1, max=16)] = 8,
    calibrate: Annotated[int | None, typer.Option(help="Crops of every other photo that calibrate, if not --crops.",
                                                  min=1, max=16)] = None,
    limit: Annotated[int | None, typer.Option(help="Count no more inputs than this.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare formats and methods on a network with published weights."""
    try:
        if network not in NETWORKS:
            raise BenchError(f"Network must be one of {', '.join(NETWORKS)}, not {network!r}")
        real = NETWORKS[network](weights)
        labels = None
        if network == "ds_cnn":
            if clips is None:
                raise BenchError("ds_cnn wants its clips: --keywords FILE")
            inputs, labels = keywords(clips)
            order = np.random.default_rng(0).permutation(len(inputs))
            calibration, inputs, labels = inputs[order[:CLIPS]], inputs[order[CLIPS:]], labels[order[CLIPS:]]
        else:
            if images is None or len(images) < 2:
                raise BenchError(f"{network} wants two photos at the least")
            views = photos(images, network)
            calibration = np.concatenate(list(views[0::2, : calibrate or crops]))
            inputs = np.concatenate(list(views[1::2, :crops]))
        if limit is not None:
            inputs, labels = inputs[:limit], None if labels is None else labels[:limit]
        wanted = _float(real, inputs)
        if not as_json:
            if labels is not None:
                print(f"float {(wanted.argmax(axis=1) == labels).mean():.2%}")
            print("format   method   logits dB   first in five accuracy  CPU s")
        for fmt in formats.split(","):
            for method in methods.split(","):
                config = QuantizeConfig(fmt, method=method, steps=steps, damping=damping,  # type: ignore[arg-type]
                                        equalization=equalization, activations=activations)  # type: ignore[arg-type]
                result = compare(real, calibration, inputs, config, labels, wanted)
                if as_json:
                    print(json.dumps(asdict(result)), flush=True)
                else:
                    accuracy = "" if result.accuracy is None else f"{result.accuracy:.2%}"
                    print(f"{fmt:8} {method:8} {result.logit_sqnr:9.2f} {result.first:7.1%} {result.in_five:7.1%} "
                          f"{accuracy:>8} {result.seconds:6.0f}", flush=True)
    except (BenchError, QuantizeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
