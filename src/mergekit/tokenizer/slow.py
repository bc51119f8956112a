"""Tokenizers without tokenizer.json, converted by transformers.

Public: :func:`converted_text`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from mergekit.checkpoint import Checkpoint
from mergekit.checkpoint.companions import is_like
from mergekit.checkpoint.finding import is_there
from mergekit.errors import CheckpointError, UnsupportedError

_SLOW = "tokenizer.model spiece.model spm.model sentencepiece.* vocab.json merges.txt vocab.txt tekken.json *.tiktoken"
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LONGEST = 200  # characters of an exception
_PACKAGES = 'pip install "mergekit[torch]" transformers sentencepiece tiktoken protobuf'


def converted_text(checkpoint: Checkpoint) -> str | None:
    """Contents of the tokenizer.json that transformers makes of a slow tokenizer's files; None if there are none.

    Raises:
        UnsupportedError: transformers is not installed.
        CheckpointError: it cannot convert them.
    """
    root = checkpoint.root
    files = sorted(root.iterdir()) if root.is_dir() else []
    found = [file.name for file in files if is_like(file.name, _SLOW) and is_there(root, file.name)]
    if not found:
        return None
    place = str(root)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        what = "the model has no tokenizer.json, and its tokenizer is converted by transformers, which is not installed"
        raise UnsupportedError(what, place=place, hint=f"`{_PACKAGES}`") from error
    with TemporaryDirectory(prefix="mergekit-tokenizer-") as folder:
        # Only these files are in its reach: no code, no pickle.
        for name in (*found, *_SETTINGS):
            if is_there(root, name):
                shutil.copyfile(root / name, Path(folder) / name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return str(tokenizer.backend_tokenizer.to_str())
        except Exception as error:  # whatever the library raises, of which there is no list
            reason = " ".join(str(error).replace(folder, str(root)).split()) or type(error).__name__
            what = "the model has no tokenizer.json, and transformers cannot convert its tokenizer: "
            what += reason if len(reason) <= _LONGEST else reason[: _LONGEST - 1] + "…"
            hint = f"`{_PACKAGES}`, or save the tokenizer once with `AutoTokenizer(...).save_pretrained(...)`"
            raise CheckpointError(what, place=place, hint=hint) from error
