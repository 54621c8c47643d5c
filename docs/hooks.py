"""For MkDocs: the READMEs of experiments are pages as they stand, with the pictures that they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"\]\(\.\./\.\./(results/[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - MkDocs' own
    """Add experiments/NAME.md for each experiments/NAME/README.md, and what these show of results/."""
    for readme in sorted(ROOT.glob("experiments/*/README.md")):
        text = readme.read_text(encoding="utf-8")
        for picture in PICTURE.findall(text):
            if files.get_file_from_path(picture) is None:
                files.append(File(picture, str(ROOT), config.site_dir, config.use_directory_urls))
        page = f"experiments/{readme.parent.name}.md"
        files.append(File.generated(config, page, content=PICTURE.sub(r"](../\1)", text)))
    return files
