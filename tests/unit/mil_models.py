"""A small recurrent torch model and its conversions to Core ML; with what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coremltools_quiet import coremltools

from exporter.quiet import quiet
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package

VOCAB, WIDTH, LAYERS = 48, 16, 2
TOKENS = (3, 40, 7, 7, 0, 47)
ZERO = np.zeros((LAYERS, WIDTH, WIDTH), np.float32)


class Layer(torch.nn.Module):
    """A decaying outer-product memory read by a normalised key, then a squared-relu network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.key = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = torch.nn.Linear(WIDTH, WIDTH)
        self.up = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.down = torch.nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.decay = torch.nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.norm(x)
        k, v, g = self.key(z), self.value(z), torch.sigmoid(self.gate(z))
        k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-3)
        memory = memory * torch.exp(-torch.exp(self.decay)) + (k.unsqueeze(2) - 0.5) @ v.unsqueeze(1)
        read = (k.unsqueeze(1) @ memory).squeeze(1)
        x = x + g * read
        return x + self.down(torch.relu(self.up(x)) ** 2), memory


class Small(torch.nn.Module):
    """(tokens[T], memory[LAYERS, WIDTH, WIDTH]) -> (logits[1, VOCAB], memory), as a chain of T steps."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = tokens
        self.embedding = torch.nn.Embedding(VOCAB, WIDTH)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = torch.nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.embedding(tokens)
        memories = [memory[layer : layer + 1] for layer in range(LAYERS)]
        for position in range(self.tokens):
            x = rows[position : position + 1]
            for index, layer in enumerate(self.layers):
                x, memories[index] = layer(x, memories[index])
        return self.head(x), torch.cat(memories, 0)


class Stateful(torch.nn.Module):
    """The same with the memory as a buffer that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Small(1)
        self.register_buffer("memory", torch.zeros(LAYERS, WIDTH, WIDTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits, memory = self.model(tokens, self.memory)
        self.memory[:] = memory
        return logits


def save(folder: Path, *, tokens: int = 1, target: str = "iOS18", precision: str = "fp32") -> Path:
    """A package with inputs `tokens` and `memory_in`, outputs `logits` and `memory_out`."""
    example = (torch.zeros(tokens, dtype=torch.int32), torch.zeros(LAYERS, WIDTH, WIDTH))
    inputs = [
        coremltools.TensorType("tokens", (tokens,), np.int32),
        coremltools.TensorType("memory_in", (LAYERS, WIDTH, WIDTH), np.float32),
    ]
    outputs = [
        coremltools.TensorType("logits", dtype=np.float32),
        coremltools.TensorType("memory_out", dtype=np.float32),
    ]
    return _convert(Small(tokens), example, inputs, outputs, [], folder, target=target, precision=precision)


def save_stateful(folder: Path) -> Path:
    """A package that keeps `memory` itself, in float16."""
    example = (torch.zeros(1, dtype=torch.int32),)
    inputs = [coremltools.TensorType("tokens", (1,), np.int32)]
    outputs = [coremltools.TensorType("logits", dtype=np.float16)]
    memory = coremltools.TensorType(shape=(LAYERS, WIDTH, WIDTH), dtype=np.float16)
    states = [coremltools.StateType(memory, name="memory")]
    return _convert(Stateful(), example, inputs, outputs, states, folder, target="iOS18", precision="fp16")


def save_functions(folder: Path, **functions: Path) -> Path:
    """One package holding the functions of several, under new names; the first is the default."""
    descriptor = coremltools.utils.MultiFunctionDescriptor()
    for name, path in functions.items():
        descriptor.add_function(str(path), "main", name)
    descriptor.default_function_name = next(iter(functions))
    with quiet():
        coremltools.utils.save_multifunction(descriptor, str(folder))
    return folder


def _convert(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: list[Any],
    outputs: list[Any],
    states: list[Any],
    folder: Path,
    *,
    target: str,
    precision: str,
) -> Path:
    with quiet():
        package = coremltools.convert(
            torch.jit.trace(model.eval(), example),
            inputs=inputs,
            outputs=outputs,
            states=states or None,
            minimum_deployment_target=getattr(coremltools.target, target),
            compute_precision={"fp16": coremltools.precision.FLOAT16, "fp32": coremltools.precision.FLOAT32}[precision],
            skip_model_load=True,
        )
        package.save(str(folder))
    return folder


def torch_steps() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and memory after each token, memory carried."""
    model, memory = Small(1).eval(), torch.from_numpy(ZERO)
    for token in TOKENS:
        with torch.no_grad():
            logits, memory = model(torch.tensor([token], dtype=torch.int32), memory)
        yield logits.numpy(), memory.numpy()


def steps(path: Path, function: str | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same from a package with explicit memory."""
    package, memory, results = Package(path), ZERO, []
    evaluator = Evaluator(package.function(function), package.weights)
    for token in TOKENS:
        outputs, _ = evaluator.run({"tokens": np.array([token], np.int32), "memory_in": memory}, {})
        memory = outputs["memory_out"]
        results.append((outputs["logits"], memory))
    return results


def largest_difference(found: Any, expected: Any) -> float:
    pairs = [(one, other) for pair in zip(found, expected, strict=True) for one, other in zip(*pair, strict=True)]
    return max(float(np.abs(one.astype(np.float64) - other).max()) for one, other in pairs)
