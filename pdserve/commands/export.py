"""``pdserve export NAME``, for the entries of the EXPORTS table."""

from pkgutil import resolve_name

from pdserve.commands import options as o
from pdserve.commands.exports import EXPORTS

export_app = o.group("Write a service for where servers run, or for another runtime.")

for _name, _target in EXPORTS.items():
    export_app.command(_name)(resolve_name(_target))
