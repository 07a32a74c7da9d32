"""`rwkv-export serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import OUTPUT, Artifacts, Checkpoint, Prompt, Quiet, Seed, Steps, Tokens

Places = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="PLACE",
        show_default="all that the browser has",
        help="Where in the browser: web:wasm-1, web:wasm-4, web:webgpu, web:webnn-npu. Repeatable.",
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Only this machine, or a phone on its USB port, over plain HTTP.")]
Host = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Address to listen on.", show_default="this machine's in its network"),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")]
Once = Annotated[bool, typer.Option("--once", help="Stop when the first browser is done.")]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FOLDER", file_okay=False, help="Where results go.", rich_help_panel=OUTPUT),
]
OrtWeb = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="onnxruntime-web, unpacked.",
        show_default="npm gets it, once",
    ),
]


def serve(
    artifacts: Artifacts,
    *,
    on: Places = None,
    local: Local = False,
    host: Host = None,
    port: Port = 0,
    once: Once = False,
    out: Out = Path("out/serve"),
    checkpoint: Checkpoint = None,
    steps: Steps = 16,
    seed: Seed = 0,
    prompt: Prompt = 16,
    tokens: Tokens = 64,
    ort_web: OrtWeb = None,
    quiet: Quiet = False,
) -> None:
    """Validate and time artifacts in the browser of any device.

    Open the address in its browser, no app is needed. The page runs each ONNX artifact in every place the browser has:
    the CPU through wasm, the GPU through WebGPU, and WebNN. Every logit and state is compared with the checkpoint here,
    as `validate` does, and timed there, as `bench` does. Results are written as they come, a file a browser, which
    `report` and `compare` read. Ctrl-C ends it. docs/devices/browser.md says what a phone's warning about the
    certificate means.

    Examples:
      rwkv-export serve out/austen-7-1.9m.onnx-cpu.fp32
      rwkv-export serve out/* --on web:webgpu --on web:wasm-4
      rwkv-export serve out/austen-7-1.9m.onnx-cpu.fp32 --local --once
    """
    from rwkv_export import output, results, serving
    from validation.serve.prepare import prepare

    with output.talking(quiet) as progress:
        site = prepare(
            artifacts,
            on=on or (),
            out=out,
            checkpoint=checkpoint,
            steps=steps,
            seed=seed,
            prompt=prompt,
            tokens=tokens,
            runtime=ort_web,
            progress=progress,
        )
    serving.wait(site, host=host, port=port, local=local, once=once, quiet=quiet)
    raise typer.Exit(results.deliver_many(site.results(), out / "report.html"))
