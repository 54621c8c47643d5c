"""Codebooks in folders and on the Hugging Face hub, by the conventions of huggingface_hub's `ModelHubMixin`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from pqkv.codec.card import TAGS, codebook_card
from pqkv.codec.codebook import CodebookSet
from pqkv.codec.codebook_file import CodebookHeader, load_codebooks, save_codebooks
from pqkv.errors import CodebookError
from pqkv.reasons import reason

FILE = "codebooks.safetensors"
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[^@]+)?")


class Codebooks(ModelHubMixin, library_name="pqkv", tags=list(TAGS)):
    """Codebooks with their provenance: `save_pretrained(folder)`, `push_to_hub(repo_id)` and
    `from_pretrained(folder or id, revision=...)` as of a model of transformers. The card is written from the header.
    """

    def __init__(self, books: CodebookSet, header: CodebookHeader) -> None:
        self.books, self.header = books, header
        self._place = FILE  # how the card names it

    @classmethod
    def load(cls, path: Path) -> Self:
        """Those of a codebook file. Raises `CodebookError` as `load_codebooks` does."""
        return cls(*load_codebooks(path))

    def push_to_hub(self, repo_id: str, **more: Any) -> str:  # noqa: ANN401 - those of the mixin
        """Upload to `repo_id`, made if need be; with `branch`, `private`, `token` and what else the mixin takes.
        Returns the commit's address.
        """
        self._place = repo_id
        return str(super().push_to_hub(repo_id, **more))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_codebooks(save_directory / FILE, self.books, self.header)
        header = self.header
        shape = {name: getattr(header, name) for name in ("num_layers", "num_kv_heads", "head_dim", "recipe", "scope")}
        about = {"library": "pqkv", "bits": self.books.code_bits, **shape, "model": header.model.model_dump()}
        (save_directory / "config.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", "utf-8")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **download: Any) -> Self:  # noqa: ANN401 - those of the mixin
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return cls.load(_found(model_id, **{name: download[name] for name in known if name in download}))

    def generate_model_card(self, *args: Any, **more: Any) -> ModelCard:  # noqa: ANN401 - those of the mixin
        """What stands in README.md."""
        return codebook_card(self.books, self.header, self._place)


def find_codebooks(place: str) -> Path:
    """The codebook file that `place` names: a file, a folder that `save_pretrained` wrote, or a hub id, `owner/name` or
    `owner/name@revision`, which is downloaded. Raises `CodebookError` where the hub has none, or cannot be reached.

    A path that does not exist and is no id is returned as it is: reading it says so.
    """
    path = Path(place)
    if path.is_dir():
        return _found(place)
    if path.exists() or place.endswith(".safetensors") or not _ID.fullmatch(place):
        return path
    name, _, revision = place.partition("@")
    return _found(name, revision=revision or None)


def _found(place: str, **download: Any) -> Path:  # noqa: ANN401 - those of hf_hub_download
    if Path(place).is_dir():
        if not (Path(place) / FILE).is_file():
            raise CodebookError(f"no {FILE} in the folder {place}; name the file, or save codebooks there")
        return Path(place) / FILE
    silent = None if download.get("local_files_only") else _silence(place, download)
    try:
        return Path(hf_hub_download(place, FILE, **{**download, "local_files_only": True} if silent else download))
    except Exception as error:  # the hub's client raises kinds of its own, its transport others
        raise _missing(place, f"the hub does not answer: {silent}" if silent else reason(error)) from error


def _silence(place: str, download: dict[str, Any]) -> str | None:
    """Why the hub does not answer, None where it does: downloading would ask it for most of a minute before it takes
    what the cache holds. Raises `CodebookError` where it answers that there is no such repository or revision.
    """
    known = {name: download[name] for name in ("revision", "token") if name in download}
    try:
        HfApi().model_info(place, timeout=10, **known)
    except HfHubHTTPError as error:
        raise _missing(place, reason(error)) from error
    except Exception as error:  # noqa: BLE001 - of whatever transport, or because HF_HUB_OFFLINE says so
        return reason(error)
    return None


def _missing(place: str, said: str) -> CodebookError:
    return CodebookError(
        f"no codebooks at '{place}', which is no file or folder here, and from the hub: {said}; name a file that "
        "pqkv train-codebooks wrote"
    )
