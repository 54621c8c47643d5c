"""A text that was calibrated on is found again however it was saved, by codebook files of any age."""

import hashlib
import random
import unicodedata

import numpy as np
import pytest
from models import WORDS

from pqkv.codec.codebook_file import Calibration, CodebookHeader, ModelIdentity
from pqkv.errors import ContaminationError
from pqkv.lm.contamination import check_contamination, identifying_documents
from pqkv.text import Corpus, Document, tokenize

pytestmark = pytest.mark.once  # documents and digests, no model
LENGTH = 100


def prose(seed, words=120):
    draw = random.Random(seed)
    lines = (" ".join(draw.choice(WORDS.split()) for _ in range(8)) for _ in range(words // 8))
    return "Größe café:\n" + "\n".join(lines) + "\n"


def stream_of(*texts, name="corpus"):
    documents = tuple(Document(f"{number}.txt", text) for number, text in enumerate(texts))
    return tokenize(Corpus(name, "all", documents), lambda text: list(text.encode()), None)


def starts_of(stream, *numbers):
    return np.array([stream.document_starts[number] for number in numbers])


def header_of(stream, digests):
    """A header as training writes it, with the digests of the documents given."""
    calibration = Calibration(
        name="seen", split="all", sha256=stream.corpus.sha256, tokens=LENGTH, context=LENGTH, documents=digests
    )
    return CodebookHeader(
        model=ModelIdentity(name="tiny", family="llama", config="0", weights="0"),
        num_layers=1, num_kv_heads=1, head_dim=16, num_subspaces=4, nbits=4, scope="head", channels="balanced",
        metric="query", calibration=calibration, samples=1, iterations=1, seed=0, errors=((0.0, 0.0),), versions={},
    )  # fmt: skip


def new_header(stream, *numbers):
    return header_of(stream, identifying_documents(stream, starts_of(stream, *numbers), LENGTH))


def old_header(stream, *numbers):
    """With digests of the text as it stood."""
    texts = [stream.corpus.documents[number].text for number in numbers]
    return header_of(stream, tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts))


FORMS = {
    "as it was": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "byte order mark": lambda text: "\ufeff" + text,
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "no last line end": lambda text: text.rstrip(),
    "white space after": lambda text: text + " \n\n",
    "white space before": lambda text: "\n " + text,
    "all of it": lambda text: "\ufeff\n" + unicodedata.normalize("NFD", text).replace("\n", "\r\n") + "\r\n",
}
# a digest of text between white space of its own cannot be found from a text without it
TOLD_BY_RAW = [name for name in FORMS if name not in ("white space after", "white space before", "all of it")]


@pytest.mark.parametrize("tested", FORMS)
@pytest.mark.parametrize(
    ("header", "seen"), [(new_header, name) for name in FORMS] + [(old_header, name) for name in TOLD_BY_RAW]
)
def test_a_document_is_found_in_whatever_form_it_was_calibrated_on_and_is_tested_in(header, seen, tested):
    trained = header(stream_of(FORMS[seen](prose(1)), prose(2)), 0)
    stream = stream_of(prose(3), FORMS[tested](prose(1)), name="other")
    with pytest.raises(ContaminationError, match=r"^1 document\(s\) of other/all"):
        check_contamination(trained.calibration, stream, starts_of(stream, 1), LENGTH, allowed=False)
    assert check_contamination(trained.calibration, stream, starts_of(stream, 0), LENGTH, allowed=False) is None


@pytest.mark.parametrize("form", [name for name in FORMS if name != "white space after"])
def test_an_old_digest_of_the_very_bytes_is_found_whatever_stands_around_them(form):
    seen = FORMS[form](prose(1) + "\n \n")
    trained = old_header(stream_of(seen), 0)
    stream = stream_of(seen, prose(3), name="other")
    with pytest.raises(ContaminationError, match=r"^1 document\(s\)"):
        check_contamination(trained.calibration, stream, starts_of(stream, 0), LENGTH, allowed=False)


@pytest.mark.parametrize("tested", TOLD_BY_RAW)
# a file's own mark is taken off when it is read
@pytest.mark.parametrize("seen", [name for name in TOLD_BY_RAW if name != "byte order mark"])
def test_unseen_documents_of_the_calibration_text_are_not_called_clean_in_another_form(seen, tested):
    calibrated = stream_of(*(FORMS[seen](prose(number)) for number in range(3)))
    trained = new_header(calibrated, 0)
    stream = stream_of(*(FORMS[tested](prose(number)) for number in range(3)))
    with pytest.raises(ContaminationError, match="is the very text"):
        check_contamination(trained.calibration, stream, starts_of(stream, 2), LENGTH, allowed=False)


def test_a_corpus_that_only_shares_its_layout_is_clean():
    trained = new_header(stream_of(prose(1), prose(2)), 0)
    stream = stream_of(prose(1), prose(4))
    assert check_contamination(trained.calibration, stream, starts_of(stream, 1), LENGTH, allowed=False) is None


def test_a_document_is_long_enough_to_identify_by_its_normal_form():
    padded = "\r\n" * 200 + "MIT License.\r\n" * 10 + " " * 200
    assert len(padded) > 256
    stream = stream_of(padded)
    assert identifying_documents(stream, np.array([0]), len(padded)) == ()
    assert len(identifying_documents(stream_of("x" * 255 + "\r\n"), np.array([0]), 9)) == 1


def test_copies_in_two_forms_are_one_document():
    stream = stream_of(prose(1), FORMS["CRLF"](prose(1)))
    assert len(identifying_documents(stream, starts_of(stream, 0, 1), LENGTH)) == 1
    trained = new_header(stream_of(prose(1)), 0)
    note = check_contamination(trained.calibration, stream, starts_of(stream, 0, 1), LENGTH, allowed=True)
    assert note is not None
    assert "1 document(s)" in note
