"""Train one bundled byte-level model from a prepared corpus; it does not fetch or clean text."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import Shape
from training.v4 import rwkv4
from training.v5 import rwkv5
from training.v6 import rwkv6
from training.v7 import rwkv7

CHAPTER_BREAK = "\f"  # as corpus.py writes it
END_OF_TEXT = 0
WARMUP = 100  # steps
CLIP = 1.0  # largest gradient norm
EVALUATE_EVERY = 250  # steps
REPORTED = 100_000  # tokens of each part of the corpus that the final losses are over, at most
PROMPTS = ("", "Elizabeth looked at Mr. Darcy, and ", '"My dear Emma," said Mr. Knightley, "')


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how; context and batch are in tokens and sequences."""

    shape: Shape
    steps: int
    batch: int = 64
    context: int = 512
    learning_rate: float = 5e-3
    final_learning_rate: float = 2e-5
    weight_decay: float = 0.1
    seed: int = 7


RECIPES = {
    "4": Recipe(shape=Shape(layers=2, width=128, ffn=256), steps=6000),
    "5.2": Recipe(shape=Shape(layers=2, width=128, ffn=224), steps=6000),
    "6": Recipe(shape=Shape(layers=2, width=128, ffn=192, rank=8), steps=6000),
    "7": Recipe(shape=Shape(layers=4, width=192, ffn=672, dropout=0.1), steps=6500),
}
MODELS: dict[str, Callable[[Shape], nn.Module]] = {"4": rwkv4, "5.2": rwkv5, "6": rwkv6, "7": rwkv7}
FAST = ("att.w0", "att.time_decay")  # parameters that take twice the rate


def encode(text: str) -> Tensor:
    """Ids of an ASCII text: byte + 1, and end of text for a chapter break."""
    ids = torch.tensor(list(text.encode("ascii")), dtype=torch.long) + 1
    return ids.masked_fill(ids == ord(CHAPTER_BREAK) + 1, END_OF_TEXT)


def optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW as the official training sets it up: decay on weight matrices only, twice the rate for FAST."""
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "fast": [], "other": []}
    for name, parameter in model.named_parameters():
        kind = "fast" if name.endswith(FAST) else "other"
        groups["matrix" if name.endswith(".weight") and parameter.ndim == 2 else kind].append(parameter)
    settings = [
        {"params": groups["matrix"], "weight_decay": recipe.weight_decay, "scale": 1.0},
        {"params": groups["fast"], "weight_decay": 0.0, "scale": 2.0},
        {"params": groups["other"], "weight_decay": 0.0, "scale": 1.0},
    ]
    return torch.optim.AdamW(settings, lr=recipe.learning_rate, betas=(0.9, 0.99), eps=1e-18)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine."""
    progress = step / recipe.steps
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    rate = recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * cosine
    return rate * min(1.0, (step + 1) / WARMUP)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean nats per token of (batch, time + 1) ids."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=model.training and tokens.is_cuda):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, window: int) -> float:
    """Mean nats per byte over consecutive windows, each from the zero state; a short last window is left out."""
    model.eval()
    windows = tokens[: (len(tokens) - 1) // window * window + 1].unfold(0, window + 1, window)
    losses = [loss_of(model, part).item() * len(part) for part in torch.split(windows, 64)]
    model.train()
    return sum(losses) / len(windows)


@torch.no_grad()
def sample(model: nn.Module, prompt: str, count: int, context: int, device: torch.device) -> str:
    """The prompt continued, at temperature 0.8 and top-p 0.9, until the end of a chapter."""
    model.eval()
    ids = torch.cat((torch.tensor([END_OF_TEXT]), encode(prompt))).to(device)
    for _ in range(count):
        probabilities = (model(ids[None, -context:])[0, -1] / 0.8).softmax(-1)
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered > 0.9] = 0.0
        chosen = order[torch.multinomial(ordered, 1)]
        if chosen.item() == END_OF_TEXT:
            break
        ids = torch.cat((ids, chosen))
    model.train()
    return bytes(i - 1 for i in ids.tolist() if i != END_OF_TEXT).decode("ascii", "replace")


def save(model: nn.Module, path: Path) -> None:
    """Write the weights, rounded to float16, as a plain mapping; complete or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.rename(path)


def train(model: nn.Module, corpus: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Train, and leave at path the rounded weights with the lowest validation loss."""
    text = corpus["train"]
    adamw = optimiser(model, recipe)
    best, started = math.inf, time.monotonic()
    span = torch.arange(recipe.context + 1, device=text.device)
    for step in range(recipe.steps):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, recipe) * group["scale"]
        offsets = torch.randint(len(text) - recipe.context, (recipe.batch, 1), device=text.device)
        loss = loss_of(model, text[offsets + span])
        adamw.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adamw.step()
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == recipe.steps:
            validation = evaluate(model, corpus["validation"], recipe.context)
            if validation < best:
                best = validation
                save(model, path)
            seconds = time.monotonic() - started
            print(f"step {step + 1} train {loss.item():.4f} validation {validation:.4f} {seconds:.0f} s", flush=True)


def report(model: nn.Module, corpus: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Print the losses of the saved weights on every part of the corpus, and samples."""
    weights = torch.load(path, weights_only=True)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    print(f"{path.name}: {path.stat().st_size} bytes, {sum(t.numel() for t in weights.values())} parameters")
    for name, tokens in ((name, part[:REPORTED]) for name, part in corpus.items()):
        for window in (recipe.context, len(tokens) - 1):
            nats = evaluate(model, tokens, window)
            print(f"{name}, windows of {window}: {nats:.4f} nats/byte, {nats / math.log(2):.4f} bits/byte")
    for prompt in PROMPTS:
        print("-" * 40, sample(model, prompt, 400, recipe.context, corpus["train"].device), sep="\n", flush=True)


def main() -> None:
    """Train one version and report on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", choices=sorted(RECIPES))
    parser.add_argument("-o", "--output", type=Path, required=True, help="the checkpoint to write, a .pth")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe's, to try things out")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.version]
    if arguments.steps:
        recipe = replace(recipe, steps=arguments.steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    names = ("train", "validation", "heldout")
    corpus = {name: encode((arguments.corpus / f"{name}.txt").read_text("ascii")).to(device) for name in names}
    model = MODELS[arguments.version](recipe.shape).to(device)
    train(model, corpus, recipe, arguments.output)
    report(model, corpus, recipe, arguments.output)


if __name__ == "__main__":
    main()
