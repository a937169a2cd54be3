"""A model by folder, by GGUF file, or by its name on the Hugging Face Hub."""

import os
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf

# What text and its chat template are made from; an export carries these on.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)

# What a model says of itself, and the terms that go wherever its weights go.
DOCUMENTS = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")

# No code: neither .py, nor PyTorch's pickles.
DOWNLOADED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    *TOKENIZER_FILES,
    *DOCUMENTS,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def commit_of(folder: Path) -> str:
    """The commit of a Hub repository of which the Hub's cache has a snapshot in `folder`; empty for another folder."""
    cached = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if cached else ""


def resolve_model(path: str | Path, revision: str = "") -> Path:
    """Resolves a model to a folder, a local one or a snapshot of a repository on the Hub, or to a GGUF file.

    Args:
        path: folder, GGUF file, or Hub name such as ``"meta-llama/Llama-2-7b-hf"``. A folder of that name wins.
        revision: branch, tag or commit of a Hub repository; the default branch if empty.
    """

    def error(why: str) -> InputError:
        return InputError(f"`path` is {path}: {why}")

    folder = Path(os.path.expanduser(path))
    # Of os.path, because a name may be too long for the file system.
    if os.path.isdir(folder) or is_gguf(folder):
        if revision:
            raise InputError(f"`revision` is {revision!r}, but {path} is on this machine: leave it empty")
        return folder
    if os.path.exists(folder):
        raise error("that is a file; give the folder that holds config.json, or a .gguf file")
    if isinstance(path, Path) or not _HUB_ID.fullmatch(path):
        raise error("there is no such folder; give a folder or a Hugging Face model name")
    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=list(DOWNLOADED)))
    except LocalEntryNotFoundError:
        state = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise error(
            f"there is no such folder, the local Hugging Face cache does not hold it, and {state}; give a folder, or "
            "connect and run again"
        ) from None
    except (HfHubHTTPError, HFValidationError) as failure:
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise error(
            f"there is no such folder, and the Hugging Face Hub does not give it out ({reason}); check the name, and "
            "for a gated model accept its terms and run `hf auth login`"
        ) from None
    except OSError as failure:
        raise error(f"downloading it failed ({failure}); give a folder, or run again") from None
