"""Errors a user can cause: each says in one line what is wrong and what would help."""


class PqkvError(Exception):
    """Base of every error that pqkv raises on purpose; the command line prints it as one line and exits with 2."""


class ConfigError(PqkvError):
    """A flag, a configuration key or a combination of them that cannot be honoured."""


class DataError(PqkvError):
    """A corpus that is missing, unreadable, empty or too short."""


class ContaminationError(PqkvError):
    """The text to evaluate on was seen while the codebooks were trained."""


class ModelError(PqkvError):
    """A model that cannot be loaded, or whose attention cannot run on codes."""


class CodebookError(PqkvError):
    """A codebook file that is damaged, foreign, or made for another model."""


class CacheError(PqkvError):
    """A cache used in a way it cannot serve: batch size changed, mask it cannot represent, NaN keys."""


class OutOfPages(PqkvError):
    """The page pool is exhausted. Raised before anything has changed."""


class RecordError(PqkvError):
    """A record that cannot be read or written."""


class KernelError(PqkvError):
    """A backend that cannot run here, or inputs that do not fit together. Raised before anything runs."""


def memory_is_short(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch raises a plain `RuntimeError` for the CPU's."""
    text = f"{type(error).__name__} {error}".lower()
    return any(words in text for words in ("memoryerror", "out of memory", "out_of_memory", "allocate memory"))
