"""How the documentation is built: Sphinx with MyST, the API from the docstrings.

Builds offline, so that CI cannot fail for somebody else's server: references to
other projects are plain text, unless PHOENIX_DOCS_INTERSPHINX is set.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any, Generic, get_origin

import attrs
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phoenix_trio
import phoenix_trio.testing
from phoenix_trio.pool.reception import Reception
from phoenix_trio.quic.connection_datagrams import DatagramCalls
from phoenix_trio.quic.connection_paths import PathCalls
from phoenix_trio.quic.connection_state import ConnectionState
from phoenix_trio.quic.construction import NoPublicConstructor
from phoenix_trio.quic.receiving_part import ReceivingPart
from phoenix_trio.quic.sending_part import SendingPart
from phoenix_trio.quic.stream import BidirectionalStream
from phoenix_trio.transport_transfers import TransferCalls

project = "phoenix_trio"
author = "the phoenix_trio authors"
project_copyright = f"2026, {author}"
release = phoenix_trio.__version__
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "code"  # `name` in a docstring is code
html_theme = "furo"
html_title = f"phoenix_trio {release}"
html_show_sphinx = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autoclass_content = "class"
autodoc_default_options = {
    "member-order": "bysource",
    "members": True,
    "show-inheritance": True,
}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }
    if os.environ.get("PHOENIX_DOCS_INTERSPHINX")
    else {}
)

nitpick_ignore = [
    ("py:class", "Certificate"),  # cryptography.x509's, imported for types only
    ("py:class", "phoenix_trio.transport_connection.R"),  # a type variable
    ("py:class", "phoenix_trio.pool.retry.T"),  # a type variable
    ("py:class", "phoenix_trio.streams.limits.Limits"),  # for other implementations
    ("py:class", "StrPath"),  # text or a path
    # Between the driver and its sockets; users of simulated ones do not meet it.
    ("py:class", "phoenix_trio.quic.path_address.PathAddress"),
    ("py:class", "phoenix_trio.quic.receive_pool.ReceivePool"),
    ("py:class", "phoenix_trio.quic.datagram_socket.DeliveryFailure"),
]
# Names of other projects resolve with intersphinx only.  Names of ours have to resolve.
nitpick_ignore_regex = [
    # Type variables.
    (r"py:class", r"phoenix_trio\.quic\.\w+\.(Connection|Sending|Receiving)T"),
    (r"py:\w+", r"phoenix_trio\.(\w+\.)+(S|T|T_co|T_contra|SentT|ReceivedT)"),
    (r"py:.*", r"(?!phoenix_trio\b)[a-z_]\w*(\.\w+)+"),  # trio.abc.Stream, collections.abc...
    (r"py:exc", r"[A-Z]\w*(Error|Warning)"),  # ValueError
    (r"py:.*", r".*[ ,`].*"),  # prose where a section has names as a rule
]

# The public face in one place, whatever private module a name comes from.
_PUBLIC: dict[str, str] = {}
for _module in (phoenix_trio, phoenix_trio.testing, phoenix_trio.streams, phoenix_trio.pool):
    for _name in _module.__all__:
        _PUBLIC.setdefault(_name, f"{_module.__name__}.{_name}")

_SNAPSHOTS = (
    phoenix_trio.ApplicationErrorCode,
    phoenix_trio.ConnectionStatistics,
    phoenix_trio.EndpointStatistics,
    phoenix_trio.ConnectionMetrics,
    phoenix_trio.TransportStatistics,
    phoenix_trio.PoolStatistics,
    phoenix_trio.TargetStatistics,
    phoenix_trio.TransferSummary,
    phoenix_trio.TransferCode,
)

# Names which appear in signatures and are private on purpose.
_PRIVATE_IN_SIGNATURES = {
    "AsyncFile",
    "DatagramSocket",
    "Decode",
    "Encode",
    "Group",
    "Handler",
    "Network",
    "PEMSource",
    "RetryPolicy",
    "SequenceSource",
    "ServerIdentity",
    "SocketAddress",
    "SocketStatistics",
    "SourceData",
    "TargetLike",
    "Value",
    "WritableFile",
}


def resolve_by_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Lead `phoenix_trio.quic.connection.QuicStream` to the public `phoenix_trio.QuicStream`."""
    if node.get("refdomain") != "py":
        return None
    target: str = node.get("reftarget", "")
    parts = target.removeprefix("~").split(".")
    for index, part in enumerate(parts):
        if part in _PUBLIC:
            public = ".".join([_PUBLIC[part], *parts[index + 1 :]])
            if public == target:
                break
            domain = env.get_domain("py")
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", public, node, content
            )
    if parts[-1] in _PRIVATE_IN_SIGNATURES:
        return content
    return None


def skip_calls_from_below(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out methods which exist for the driver: their docstrings say so."""
    documentation = inspect.getdoc(obj) if callable(obj) else None
    return True if documentation and documentation.startswith("Called by the driver") else None


def show_constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str
) -> tuple[str, str] | None:
    """Show arguments only where users construct: not for errors, nor for what factories make."""
    if not signature or what not in {"class", "exception"}:
        return None
    if what == "exception" or isinstance(obj, NoPublicConstructor) or obj in _SNAPSHOTS:
        return "", ""
    if attrs.has(obj):
        # The generated __init__ has the types, but shows no defaults.
        fields = [field for field in attrs.fields(obj) if field.init]
        arguments = [f"{field.name}: {field.type}{_default(field)}" for field in fields]
        if any(field.kw_only for field in fields):
            arguments.insert(0, "*")
        return f"({', '.join(arguments)})", ""
    return None


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return ""
    # (That of a factory is no expression, so that Sphinx could not parse the signature.)
    return " = ..." if isinstance(field.default, attrs.Factory) else f" = {field.default!r}"  # type: ignore[arg-type]


#: Base classes whose methods are shown as those of the public class.
_PRIVATE_BASES = (
    ConnectionState,
    DatagramCalls,
    BidirectionalStream,
    SendingPart,
    ReceivingPart,
    TransferCalls,
    PathCalls,
    Reception,
)


def show_public_bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """In place of a private base class, show the bases which that one has."""
    shown = []
    waiting = list(bases)
    while waiting:
        base = waiting.pop(0)
        origin = get_origin(base) or base
        if origin in _PRIVATE_BASES:
            waiting[:0] = origin.__bases__
        else:
            shown.append(base)
    bases[:] = [base for base in shown if base not in (Generic, object)]


def leave_out_text_tables(app: Sphinx, name: str, source: list[str]) -> None:
    """Leave out the tables of docs/api.md for readers of the plain file."""
    source[0] = re.sub(
        r"<!-- text tables: begin.*<!-- text tables: end -->", "", source[0], flags=re.DOTALL
    )


def check_completeness(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn, which is an error in CI, of public names that no page describes."""
    from sphinx.util import logging

    described = env.get_domain("py").data["objects"]
    for module in (phoenix_trio, phoenix_trio.testing):
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            if not name.startswith("__") and full not in described:
                logging.getLogger(__name__).warning("%s is public, but not documented", full)


def setup(app: Sphinx) -> None:
    app.connect("source-read", leave_out_text_tables)
    app.connect("missing-reference", resolve_by_public_name)
    app.connect("autodoc-skip-member", skip_calls_from_below)
    app.connect("autodoc-process-signature", show_constructor)
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("env-check-consistency", check_completeness)
