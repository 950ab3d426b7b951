"""Every error this package raises on purpose. Each message says what was found, what was expected and what to do."""


class GANInversionError(Exception):
    """Base class: catch this to catch everything the package raises on purpose."""

    # ComfyUI shows an error with its module, which for a node pack would be the path of its folder.
    __module__ = "gan_inversion"

    def __init_subclass__(cls) -> None:
        """Gives every error the same short module."""
        super().__init_subclass__()
        cls.__module__ = GANInversionError.__module__


class InvalidInputError(GANInversionError, ValueError):
    """A tensor, image, option or name has the wrong shape, range or value."""


class UnsupportedModelError(GANInversionError):
    """The file is readable, but no architecture of this package fits its keys and shapes."""


class CorruptFileError(GANInversionError):
    """The file is truncated, is a web page or LFS pointer in place of weights, or is not in the format its name says."""


class UnsafeFileError(GANInversionError):
    """The file wants to run code while it is read. Nothing in it was executed."""


class ModelNotFoundError(GANInversionError):
    """No such file and no such catalogue id."""


class DownloadError(GANInversionError):
    """A catalogue file could not be fetched or did not pass its size and sha256 check."""


class GeneratorMismatchError(GANInversionError):
    """An inversion, encoder or direction was made for another generator."""


class NoFaceError(GANInversionError):
    """No face was found where one is needed."""


class MissingPackageError(GANInversionError, ImportError):
    """A Python package that only this function needs is not installed, or is broken."""


class NotFiniteError(GANInversionError):
    """An image or an optimisation produced NaN or infinity."""
