"""The exceptions of pyro_align. Every message names the site and the axis at fault and says what to do."""


class PyroAlignError(Exception):
    """Base class of every error that pyro_align raises on purpose."""


class SymmetryError(PyroAlignError, ValueError):
    """A symmetry does not fit its model, its tensors, or itself."""


class TraceError(PyroAlignError, RuntimeError):
    """A model could not be traced, so its symmetry cannot be found from it."""


class GuideError(PyroAlignError, ValueError):
    """A guide cannot be read, relabeled or moved."""


class MatchError(PyroAlignError, ValueError):
    """Two posteriors cannot be matched."""


class BarrierError(PyroAlignError, ValueError):
    """A path cannot be evaluated."""


class FormatError(PyroAlignError, ValueError):
    """A file is truncated, foreign, changed, or of a newer version."""


class KeywordError(PyroAlignError, TypeError):
    """A keyword that is both an option of a verb and a parameter of the model."""


class DiagnosticWarning(UserWarning):
    """A result is valid but should not be read at face value."""


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no message")
