"""One training loop: deterministic by its seed, resumable from a checkpoint, on a GPU where there is one.

Everything that an epoch draws at random is seeded with the number of the epoch, and the learning rate is a closed
form of the step, so a checkpoint is no more than the parameters, the optimizers' moments and the epochs done: a run
that was interrupted ends with the bits of one that was not.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ..config import QuantizeError

if TYPE_CHECKING:
    from ..module import QuantizedNetwork  # which imports this package, for the rules

__all__ = ["Progress", "TrainConfig", "accuracy", "show", "train", "training_device"]

#: Changes a batch of inputs (N, ...), with draws from the generator alone.
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Parameters
    ----------
    epochs, batch : int
        Passes over the data, and samples per step.
    rate : float
        Largest learning rate of AdamW: reached after ``warmup``, from where a cosine falls to 0.
    warmup : float
        Share of all steps.
    decay : float
        AdamW's weight decay, of the weights alone.
    smoothing : float
        Label smoothing.
    distill : float
        Share of the loss that asks for a teacher's outputs instead of the labels.
    temperature : float
        What outputs are divided by before the teacher's and the network's are compared.
    threshold_rate, threshold_momentum, threshold_clamp : float
        Plain gradient descent on the thresholds of rules that train them (TGA), with gradients clamped to
        ``±threshold_clamp``. The rate rises and falls as that of the weights does.
    threshold_pass : bool
        Two passes per batch where there are thresholds: thresholds first, then weights. Else both follow one gradient,
        in half the time.
    seed : int
        Of the order of the samples, augmentation, dropout and the draws of rules.

    Raises
    ------
    QuantizeError
        If a value is impossible.
    """

    epochs: int = 10
    batch: int = 128
    rate: float = 1e-3
    warmup: float = 0.1
    decay: float = 0.0
    smoothing: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0
    threshold_rate: float = 1e-4
    threshold_momentum: float = 0.9
    threshold_clamp: float = 1e-3
    threshold_pass: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise QuantizeError(f"{name} must be an integer of at least {low}, not {value!r}")
        for name in ("warmup", "smoothing", "distill"):
            if not 0 <= getattr(self, name) <= 1:
                raise QuantizeError(f"{name} must lie in 0..1, not {getattr(self, name)!r}")
        for name in ("rate", "temperature", "threshold_clamp"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise QuantizeError(f"{name} must be a positive number, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Progress:
    """Where a training run stands, after each step.

    Parameters
    ----------
    epoch, epochs : int
        The current one, from 1, of how many.
    step, steps : int
        Likewise, within the epoch.
    loss : float
        Mean of the epoch so far.
    seconds, eta : float
        Since the run began (or went on); and to its end, at this pace.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float
    eta: float

    def __str__(self) -> str:
        return (f"epoch {self.epoch}/{self.epochs}, step {self.step}/{self.steps}, loss {self.loss:.4f}, "
                f"{self.seconds:.0f} s, {self.eta:.0f} s to go")


def show(progress: Progress) -> None:
    """Print progress to stderr: rewriting one line on a terminal, else a line per epoch."""
    last = progress.step == progress.steps
    if sys.stderr.isatty():
        print(f"\r{progress}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(progress, file=sys.stderr, flush=True)


def train(network: nn.Module, x: torch.Tensor, y: torch.Tensor, config: TrainConfig | None = None, *,
          teacher: nn.Module | None = None, augment: Augment | None = None, checkpoint: Path | str | None = None,
          progress: Callable[[Progress], None] | None = None, device: torch.device | str | None = None) -> nn.Module:
    """Train a network, in place, to classify.

    Parameters
    ----------
    network : nn.Module
        A :class:`~nomul.quantize.QuantizedNetwork`, trained in mode ``"fake"``, or any other module.
    x : float Tensor, shape (N, ...)
    y : int64 Tensor, shape (N,)
        Classes.
    config : TrainConfig, optional
    teacher : nn.Module, optional
        Whose outputs ``config.distill`` asks for; a quantized network in mode ``"float"`` will do.
    augment : callable, optional
        Changes a batch of inputs; draws from the generator that it is given, and from nothing else.
    checkpoint : Path, optional
        Written after every epoch. If it is there, the run goes on from it.
    progress : callable, optional
        Called after every step; :func:`show` prints.
    device : torch.device or str, optional
        Where to train, as :func:`training_device` understands it; the network comes back to the CPU.

    Returns
    -------
    nn.Module
        The same network, in evaluation mode.

    Raises
    ------
    QuantizeError
        If inputs and classes do not match, the checkpoint is of another run, there is no such device, or the loss is
        no longer a number.
    """
    config = TrainConfig() if config is None else config
    if len(x) != len(y) or not len(x):
        raise QuantizeError(f"There must be as many classes as inputs, and some: not {len(y)} and {len(x)}")
    if config.distill and teacher is None:
        raise QuantizeError("distill needs a teacher")
    target = training_device(device)
    quantized = _quantized(network)
    if quantized is not None:
        quantized.mode = "fake"
    network.to(target)
    if teacher is not None:
        teacher.to(target).eval()
    optimizers = _optimizers(network, config)
    path = None if checkpoint is None else Path(checkpoint)
    first = _resume(path, network, optimizers, config)
    steps = -(-len(x) // config.batch)
    began = time.monotonic()
    with torch.random.fork_rng():
        for epoch in range(first, config.epochs):
            torch.manual_seed(config.seed * 1_000_003 + epoch)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order, total, seen = torch.randperm(len(x), generator=generator), 0.0, 0
            network.train()
            for step in range(steps):
                batch = order[step * config.batch : (step + 1) * config.batch]
                inputs = x[batch] if augment is None else augment(x[batch], generator)
                inputs, classes = inputs.to(target), y[batch].to(target)
                wanted = None
                if teacher is not None and config.distill:
                    with torch.no_grad():
                        wanted = teacher(inputs)
                _set_rates(optimizers, config, epoch * steps + step, config.epochs * steps)
                loss = _step(network, optimizers, config, inputs, classes, wanted)
                if quantized is not None:
                    quantized.settle(generator)
                total, seen = total + loss * len(batch), seen + len(batch)
                if not isfinite(total):
                    raise QuantizeError(f"The loss is {loss} in step {step + 1} of epoch {epoch + 1}; a smaller rate "
                                        f"than {config.rate:g} may do")
                if progress is not None:
                    seconds = time.monotonic() - began
                    done = (epoch - first) * steps + step + 1
                    progress(Progress(epoch + 1, config.epochs, step + 1, steps, total / seen, seconds,
                                      seconds / done * ((config.epochs - first) * steps - done)))
            _save(path, network, optimizers, config, epoch + 1)
    return network.to("cpu").eval()


def training_device(wanted: torch.device | str | None = None) -> torch.device:
    """Where to train: what is asked for, else the first GPU, or the CPU where there is none.

    Raises
    ------
    QuantizeError
        If PyTorch knows no such device, or finds no GPU where one is asked for.
    """
    gpu = torch.cuda.is_available()
    if wanted is None:
        return torch.device("cuda" if gpu else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise QuantizeError(f"There is no device {wanted!r}; cpu and cuda are") from None
    if device.type == "cuda" and not (gpu and (device.index or 0) < torch.cuda.device_count()):
        raise QuantizeError(f"There is no GPU {str(device)!r} that PyTorch can use; device='cpu' will do")
    return device


def accuracy(network: nn.Module, x: torch.Tensor, y: torch.Tensor, *, batch: int = 250) -> float:
    """Share of inputs whose largest output is that of their class, in the mode that the network is in."""
    network.eval()
    with torch.no_grad():
        right = sum(int((network(x[at : at + batch]).argmax(1) == y[at : at + batch]).sum())
                    for at in range(0, len(x), batch))
    return right / len(x)


def _quantized(network: nn.Module) -> "QuantizedNetwork | None":
    from ..module import QuantizedNetwork

    return network if isinstance(network, QuantizedNetwork) else None


def _optimizers(network: nn.Module, config: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """AdamW on what a network learns, and gradient descent on its thresholds if it has any."""
    quantized = _quantized(network)
    if quantized is None:
        decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
        thresholds = list[nn.Parameter]()
    else:
        decayed, others, thresholds = quantized.weights(), quantized.others(), quantized.thresholds()
    made: dict[str, torch.optim.Optimizer] = {"weights": torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.decay}, {"params": others, "weight_decay": 0.0}], lr=config.rate)}
    if thresholds:
        made["thresholds"] = torch.optim.SGD(thresholds, lr=config.threshold_rate, momentum=config.threshold_momentum)
    return made


def _set_rates(optimizers: dict[str, torch.optim.Optimizer], config: TrainConfig, step: int, steps: int) -> None:
    """A line up to the largest rate, then half a cosine to 0.

    Thresholds as well: one that moves when the weights hardly do turns over all that lie beside it, unanswered.
    """
    rise = max(1, round(config.warmup * steps))
    share = (step + 1) / rise if step < rise else (1 + cos(pi * (step - rise + 1) / max(1, steps - rise))) / 2
    for name, rate in (("weights", config.rate), ("thresholds", config.threshold_rate)):
        for group in optimizers[name].param_groups if name in optimizers else ():
            group["lr"] = rate * share


def _step(network: nn.Module, optimizers: dict[str, torch.optim.Optimizer], config: TrainConfig, x: torch.Tensor,
          y: torch.Tensor, wanted: torch.Tensor | None) -> float:
    """One step of all optimizers; returns the loss."""
    thresholds = optimizers.get("thresholds")
    passes = [list(optimizers.values())]
    if thresholds is not None and config.threshold_pass:
        passes = [[thresholds], [optimizers["weights"]]]
    value = 0.0
    for stepping in passes:
        network.zero_grad()
        loss = _loss(network(x), y, wanted, config)
        loss.backward()  # type: ignore[no-untyped-call]
        if thresholds is not None:
            nn.utils.clip_grad_value_(thresholds.param_groups[0]["params"], config.threshold_clamp)
        for optimizer in stepping:
            optimizer.step()
        value = float(loss.detach())
    return value


def _loss(outputs: torch.Tensor, y: torch.Tensor, wanted: torch.Tensor | None, config: TrainConfig) -> torch.Tensor:
    loss = functional.cross_entropy(outputs, y, label_smoothing=config.smoothing)
    if wanted is None:
        return loss
    # The square keeps the gradient's size what it is at temperature 1.
    soft = config.temperature**2 * functional.kl_div(
        functional.log_softmax(outputs / config.temperature, 1), functional.log_softmax(wanted / config.temperature, 1),
        reduction="batchmean", log_target=True)
    return (1 - config.distill) * loss + config.distill * soft


def _resume(path: Path | None, network: nn.Module, optimizers: dict[str, torch.optim.Optimizer],
            config: TrainConfig) -> int:
    """Bring a run back to where its checkpoint was written; returns the epochs that are done."""
    if path is None or not path.exists():
        return 0
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if found["config"] != asdict(config):
        changed = ", ".join(name for name, value in asdict(config).items() if found["config"].get(name) != value)
        raise QuantizeError(f"{path} is the checkpoint of a run with other choices: {changed}")
    try:
        network.load_state_dict(found["network"])
    except RuntimeError:
        raise QuantizeError(f"{path} is the checkpoint of another network") from None
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(found["optimizers"][name])
    return int(found["epochs"])


def _save(path: Path | None, network: nn.Module, optimizers: dict[str, torch.optim.Optimizer], config: TrainConfig,
          epochs: int) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")  # whoever is killed here leaves the checkpoint before
    torch.save({"config": asdict(config), "epochs": epochs, "network": network.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()}}, part)
    part.replace(path)
