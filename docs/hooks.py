"""For MkDocs: the READMEs of experiments are pages as they stand, with the pictures that they show."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
EXPERIMENT = re.compile(r"\]\((?:\.\./)+experiments/([\w-]+)/README\.md")
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


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ANN401 - MkDocs' own
    """In the repository pages link to the READMEs of experiments where they lie, on the site to the pages they are."""
    here = posixpath.dirname(page.file.src_uri)
    return EXPERIMENT.sub(lambda found: "](" + posixpath.relpath(f"experiments/{found[1]}.md", here), markdown)
