"""The group of commands."""

from __future__ import annotations

import click

from .. import __version__, is_compiled
from .bench import benchmark_commands
from .certificate import certificate
from .demo import demo
from .doctor import doctor
from .plot import plot
from .receive import receive
from .send import send
from .top import top

__all__ = ["program"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(
    __version__,
    prog_name="phoenix-trio",
    message=f"%(prog)s %(version)s ({'compiled' if is_compiled else 'pure Python'})",
)
def program() -> None:
    """Move files over QUIC, and see what QUIC over Trio can do.

    \b
    Try it on this machine alone:
        phoenix-trio demo

    \b
    Between two machines:
        there$ phoenix-trio receive incoming/
        here$  phoenix-trio send there:4433 big.iso --pin ab:cd:...

    The receiver prints the whole line to type on the other machine.
    """


for _command in (
    receive,
    send,
    certificate,
    demo,
    doctor,
    top,
    plot,
    *benchmark_commands(),
):
    program.add_command(_command)
