"""What a source holds and a corpus leaves out: gathered while it is read, told in lines that a record can hold."""

from __future__ import annotations

from pqkv.text.documents import printable

_NAMED = 5  # of each reason; the count stands before them
_DETAIL = 60  # characters


class PassedOver:
    """Names by the reason why they were passed over."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, reason: str, detail: str = "") -> None:
        """Note that `name`, relative to the source, was not read; `detail` is what this one holds, or what of it."""
        shown = f"{name} ({detail[:_DETAIL]}{'...' if len(detail) > _DETAIL else ''})" if detail else name
        self._names.setdefault(reason, []).append(printable(shown))

    def lines(self) -> tuple[str, ...]:
        """One line a reason, `2 passed over (binary): a.bin, b/c.png`, whatever the order they were noted in."""
        return tuple(self._line(reason, sorted(names)) for reason, names in sorted(self._names.items()))

    @staticmethod
    def _line(reason: str, names: list[str]) -> str:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"{len(names)} passed over ({reason}): {', '.join(names[:_NAMED])}{more}"
