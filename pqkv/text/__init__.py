"""Corpora -> documents -> token windows, with named splits."""

from pqkv.text.corpora import KNOWN_CORPORA, load_corpus
from pqkv.text.documents import Corpus, Document
from pqkv.text.hub import HUB_SETS, HubSet, hub_documents
from pqkv.text.normal import normal_form, raw_digests
from pqkv.text.splits import is_test
from pqkv.text.tokens import TokenStream, tokenize
from pqkv.text.windowing import WindowSet, documents_in, touched_documents, windows

__all__ = [
    "HUB_SETS",
    "KNOWN_CORPORA",
    "Corpus",
    "Document",
    "HubSet",
    "TokenStream",
    "WindowSet",
    "documents_in",
    "hub_documents",
    "is_test",
    "load_corpus",
    "normal_form",
    "raw_digests",
    "tokenize",
    "touched_documents",
    "windows",
]
