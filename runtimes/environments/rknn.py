"""Rockchip's RKNN Toolkit 2: its compiler and simulator, which need an older NumPy, ONNX and protobuf than we do."""

from __future__ import annotations

from runtimes.environments import Environment

ENVIRONMENT = Environment(
    name="rknn",
    summary="Rockchip's RKNN Toolkit 2, compiler and simulator for RK3588 and RK3576; Rockchip's licence, 1.5 GB",
    # It asks for torch 2.4 at most, imports it even where nothing of torch is converted, and runs with 2.13.
    resolved=("torch==2.13.0",),
    pins=(
        "rknn-toolkit2==2.5.0",
        "numpy==1.26.4",
        "onnx==1.18.0",
        "onnxruntime==1.23.2",
        "protobuf==4.25.4",
        "opencv-python-headless==4.11.0.86",
        "scipy==1.17.1",
        "ruamel.yaml==0.19.1",
        "fast-histogram==0.14",
        "psutil==7.2.2",
        "tqdm==4.70.1",
        "flatbuffers==25.12.19",
        "coloredlogs==15.0.1",
        "humanfriendly==10.0",
        "packaging==26.3",
        "setuptools==65.5.0",  # newer ones have no pkg_resources, which a build imports
    ),
    imports=("rknn.api", "pkg_resources"),
    systems=(("Linux", "x86_64"),),
    pythons=((3, 11), (3, 12)),
)
