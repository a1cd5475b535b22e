"""The command `demo`: a page in the browser that draws."""

import ipaddress
import os
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from pixelhdm.checkpoints import FOLDER, Weights, is_checkpoint
from pixelhdm.demo.studio import Studio
from pixelhdm.errors import UserError, one_line
from pixelhdm.pipeline import PixelHDMPipeline

Dtype = Literal["float32", "bfloat16", "float16"]
ANALYTICS = "GRADIO_ANALYTICS_ENABLED"


def demo(
    model: str,
    config: str | list[str] | None = None,
    weights: Weights = "ema",
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Open a page in the browser that draws, for prompts or classes, with a preview of the steps.

    It needs Gradio: pip install 'gradio>=6,<7'. The page loads nothing from elsewhere.

    Args:
        model: folder or Hub name of an exported model, a checkpoint, or the folder of a run, whose
            checkpoint with the most steps is meant.
        config: settings of a checkpoint, one YAML file or [FILE,FILE]; empty takes config.yaml of
            its run.
        weights: which weights of a checkpoint: ema (the average) or raw.
        host: address of this machine that the page is served at; 127.0.0.1 is reached from this
            machine alone, 0.0.0.0 from every other one that can reach it.
        port: port of that address.
        share: whether Gradio's server makes a public address for it, which everybody who knows it
            can draw at.
        device: where it computes, such as cpu or cuda; empty takes a GPU where there is one.
        dtype: type of the weights; empty keeps them float32 and computes as predict does.

    Raises:
        UserError: the model cannot be read, the address is not free, or Gradio is missing.
    """
    check_gradio()
    pipe = read_pipeline(model, config, weights, device, dtype)
    with TemporaryDirectory(prefix="pixelhdm_demo_") as folder:
        serve(Studio(pipe, Path(folder), model), host, port, share)


def check_gradio() -> None:
    """Raise a UserError where Gradio is missing; keep it from calling home where it is not."""
    os.environ.setdefault(ANALYTICS, "False")
    if find_spec("gradio") is None:
        raise UserError(
            "demo must have the package gradio, got none. Run pip install 'gradio>=6,<7'."
        )


def read_pipeline(
    model: str,
    config: str | list[str] | None,
    weights: Weights,
    device: str | None,
    dtype: Dtype | None,
) -> PixelHDMPipeline:
    """The pipeline of an exported model or of a checkpoint, which draws without a bar."""
    if device is not None:
        check_device(device)
    number_type = None if dtype is None else getattr(torch, dtype)
    if config or is_checkpoint(model) or (Path(model) / FOLDER).is_dir():
        pipe = PixelHDMPipeline.from_checkpoint(model, config, weights, device, number_type)
    else:
        pipe = PixelHDMPipeline.from_pretrained(model, number_type, device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_device(device: str) -> None:
    """Raise a UserError unless PyTorch reaches a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch has no CUDA
        raise UserError(
            f"device must be one that PyTorch reaches, got {device} ({one_line(error)[:120]}). "
            "Leave it out for the best one."
        ) from error


def serve(studio: Studio, host: str, port: int, share: bool) -> None:
    """Serve the page until somebody presses Ctrl+C."""
    page = import_module("pixelhdm.demo.page").Page(studio)
    if not is_loopback(host):
        print(
            f"Warning: --host {host} lets every machine that reaches this one draw here, without "
            "a password.",
            file=sys.stderr,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after `kill`, too
    open_page(page, host, port, share)
    print(
        f"The demo of {studio.model} is at {page.blocks.local_url} Stop it with Ctrl+C.", flush=True
    )
    page.blocks.block_thread()


def open_page(page: Any, host: str, port: int, share: bool) -> None:
    """Begin to serve the page at an address, beside the calling thread."""
    look = import_module("pixelhdm.demo.look")
    try:
        page.blocks.queue().launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=look.THEME,
            css=look.CSS,
        )
    except (OSError, OverflowError) as error:  # the latter for a port above 65535
        raise UserError(
            f"host and port must be a free address of this machine, got {host}:{port}. Choose "
            "another --port."
        ) from error


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
