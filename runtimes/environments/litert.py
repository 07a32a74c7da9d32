"""Google's LiteRT: its converter from PyTorch and its interpreter; the converter's pins do not go with ours."""

from __future__ import annotations

from runtimes.environments import Environment

ENVIRONMENT = Environment(
    name="litert",
    summary="LiteRT's converter from PyTorch and its interpreter, for .tflite files; Apache-2.0, 1.9 GB",
    resolved=("torch==2.13.0",),
    # What converting a program and running it import; not what litert-torch asks for to fetch and to author models.
    pins=(
        "litert-torch==0.10.0",
        "litert-converter==0.5.0",
        "ai-edge-litert==2.3.0",
        "ai-edge-quantizer==0.10.0",
        "torchao==0.18.0",
        "numpy==2.4.6",
        "scipy==1.17.1",
        "jax==0.10.2",
        "jaxlib==0.10.2",
        "ml_dtypes==0.6.0",
        "opt_einsum==3.4.0",
        "flatbuffers==25.12.19",
        "protobuf==7.36.2",
        "absl-py==2.5.1",
        "immutabledict==4.2.1",
        "backports.strenum==1.2.8",
        "packaging==26.3",
        "rich==15.0.0",
        "pygments==2.21.0",
        "markdown-it-py==4.3.0",
        "mdurl==0.1.2",
        "tqdm==4.70.1",
    ),
    imports=("litert_torch", "ai_edge_litert.interpreter"),
    systems=(("Linux", "x86_64"),),
    pythons=((3, 11), (3, 13)),
)
