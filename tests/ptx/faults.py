"""What an executed kernel can do wrong."""


class PtxFault(Exception):
    """A kernel did what PTX leaves undefined or what its caller forbade. The executor adds where it happened."""

    def __init__(self, reason, place=""):
        super().__init__(f"{reason}{place}")
        self.reason, self.placed = reason, bool(place)

    def at(self, place):
        """The same fault with the line that caused it; the innermost place stays."""
        return self if self.placed else type(self)(self.reason, place)


class UnknownForm(PtxFault):
    """PTX that the executor has no meaning for."""


class OutOfBounds(PtxFault):
    """An address outside every allocation."""


class Misaligned(PtxFault):
    """An address that is no multiple of the bytes accessed."""


class Race(PtxFault):
    """Two warps met at a word, of which one wrote, without a barrier between them."""


class BadBarrier(PtxFault):
    """A barrier that not every thread of the block arrives at."""


class Poison(PtxFault):
    """A value that nobody wrote decided something."""


class TooLong(PtxFault):
    """More instructions than the launch allows: most likely a loop without an end."""
