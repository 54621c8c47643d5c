"""What tests of figures in prose share: the text in one line, the numbers it has where a pattern says, and scripts."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def text_of(path):
    """A file of the project with every run of white space as one space, so that lines may break anywhere."""
    return " ".join((ROOT / path).read_text().split())


def numbers(text, pattern):
    """The numbers in the groups of `pattern`, which has to be in the text."""
    found = re.search(pattern, text)
    assert found, pattern
    return [float(number.replace(",", "")) for number in found.groups()]


def script(path):
    """A script of the project as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
