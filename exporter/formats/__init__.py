"""Checkpoint containers (.pth, safetensors) and the tensor names found in them; no file here knows an RWKV version."""
