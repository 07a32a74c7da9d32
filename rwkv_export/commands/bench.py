"""`rwkv-export bench`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rwkv_export.options import Artifacts, JsonFile, Junit, Markdown, On, Prompt, Quiet, Threads, Tokens

Profile = Annotated[
    bool,
    typer.Option("--profile", help="Also show where a token's time goes: kernels, operators, overhead."),
]

CoolDown = Annotated[
    int,
    typer.Option(min=0, help="Seconds to rest before each measurement; phones and boards heat up."),
]


def bench(
    artifacts: Artifacts,
    *,
    on: On = None,
    prompt: Prompt = 64,
    tokens: Tokens = 128,
    threads: Threads = 0,
    profile: Profile = False,
    cool_down: CoolDown = 0,
    json: JsonFile = None,
    junit: Junit = None,
    markdown: Markdown = None,
    quiet: Quiet = False,
) -> None:
    """Measure load time, first token, prefill, decode and memory.

    Says where the work really ran, and warns of what makes a measurement odd. Keeps every sample: `--json` writes them,
    `report` draws them, `compare` tests whether two runs differ. `--profile` takes a session of its own, so that it
    leaves the samples undisturbed.

    Examples:
      rwkv-export bench out/austen-7-1.9m.onnx-cpu.fp32
      rwkv-export bench out/* --prompt 256 --tokens 64 --json today.json
      rwkv-export bench out/* --threads 1 --on ort:cpu --on ort:cpu-fused
      rwkv-export bench out/austen-7-1.9m.executorch-xnnpack.fp32 --profile
      rwkv-export bench out/* --on ssh://pi@board/ort:cpu --cool-down 60
    """
    import validation
    from runtimes.threads import VARIABLE
    from rwkv_export import output, results

    os.environ[VARIABLE] = str(threads)
    with results.kept(json, quiet=quiet) as keep:
        with output.talking(quiet) as progress:
            found = validation.measure(
                artifacts,
                on=on,
                prompt=prompt,
                tokens=tokens,
                profile=profile,
                cool_down=cool_down,
                keep=keep,
                progress=progress,
            )
        code = results.deliver(found, json=json, junit=junit, markdown=markdown)
    raise typer.Exit(code)
