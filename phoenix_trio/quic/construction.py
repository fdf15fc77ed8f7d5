"""Restricts the creation of instances to factories.

Floor 0.  An unregistered connection, or a stream without a connection, would be a trap.  Calling
such a class directly raises an error that names the source of instances.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

__all__ = ["NoPublicConstructor"]

T = TypeVar("T")


class NoPublicConstructor(ABCMeta):
    """A metaclass: ``Class(...)`` raises TypeError, ``Class._create(...)`` constructs."""

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} has no public constructor;"
            " its documentation says where instances come from"
        )

    if TYPE_CHECKING:

        def _create(cls: type[T], *args: Any, **kwargs: Any) -> T: ...

    else:
        _create = type.__call__  # (A method of our own would double the cost of a stream's.)
